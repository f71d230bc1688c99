/* Direct I/O, whose memory has to be aligned, also where the writes wait for something. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096

int main(void)
{
    char name[] = "./parity-direct-XXXXXX";
    int plain = mkstemp(name);
    int fd = open(name, O_RDWR | O_DIRECT);
    unlink(name);
    if (plain < 0 || fd < 0) {
        printf("no direct I/O here: %d\n", errno);
        return 0;
    }
    char *pages = aligned_alloc(PAGE, 4 * PAGE), *back = aligned_alloc(PAGE, 4 * PAGE);
    for (int i = 0; i < 4; i++)
        memset(pages + i * PAGE, 'a' + i, PAGE);
    printf("written %zd\n", pwrite(fd, pages, 4 * PAGE, 0));
    printf("over it %zd\n", pwrite(fd, pages + PAGE, PAGE, 2 * PAGE));
    memcpy(pages + 2 * PAGE, pages + PAGE, PAGE);
    printf("read %zd\n", pread(fd, back, 4 * PAGE, 0));
    printf("%s\n", memcmp(pages, back, 4 * PAGE) == 0 ? "the same" : "different");
    printf("a few bytes %d\n", pwrite(fd, pages, 100, 0) == -1 && errno == EINVAL);
    printf("moved %zd %ld\n", write(fd, pages, PAGE), (long)lseek(fd, 0, SEEK_CUR));
    printf("flushed %d\n", fsync(fd));
    printf("size %ld\n", (long)lseek(plain, 0, SEEK_END));
    return 0;
}
