/* Mappings. */
#include "effects.h"

#include <linux/aio_abi.h>
#include <string.h>
#include <sys/mman.h>

#define MAP(call, how) static long call##_##how(void)
enum { READ_WRITE = PROT_READ | PROT_WRITE, PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS };

MAP(mmap, anonymous) { return syscall(SYS_mmap, NULL, 3 * PAGE, READ_WRITE, PRIVATE, -1, 0l) == -1 ? -1 : 0; }
MAP(mmap, file) { return syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_SHARED, data_fd, 0l) == -1 ? -1 : 0; }
MAP(mmap, written) {
    char *new = mmap(NULL, PAGE, READ_WRITE, MAP_SHARED, data_rw_fd, 0);
    if (new == MAP_FAILED)
        return -1;
    new[7]++;
    return 0;
}
MAP(mmap, over) {
    return syscall(SYS_mmap, pages + PAGE, PAGE, PROT_READ, PRIVATE | MAP_FIXED, -1, 0l) == -1 ? -1 : 0;
}
MAP(munmap, part) { return syscall(SYS_munmap, pages + 3 * PAGE, PAGE); }
MAP(munmap, locked) { return syscall(SYS_munmap, pages + 12 * PAGE, PAGE); }
MAP(mprotect, none) { return syscall(SYS_mprotect, pages + 5 * PAGE, PAGE, PROT_NONE); }
MAP(mremap, shorter) { return syscall(SYS_mremap, pages + 15 * PAGE, PAGE, 0l, 0) == -1 ? 0 : -1; }
MAP(mremap, move) {
    char *to = mmap(NULL, 2 * PAGE, PROT_NONE, PRIVATE, -1, 0);
    return syscall(SYS_mremap, pages + 7 * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == -1 ? -1 : 0;
}
MAP(brk, more) {
    char *end = sbrk(0);
    return syscall(SYS_brk, end + 3 * PAGE) == (long)end + (long)(3 * PAGE) ? 0 : -1;
}
MAP(madvise, zero) { return syscall(SYS_madvise, pages + 9 * PAGE, PAGE, MADV_DONTNEED) || pages[9 * PAGE]; }
MAP(mlock, pages) { return syscall(SYS_mlock, pages, 2 * PAGE); }
MAP(mlock2, pages) { return syscall(SYS_mlock2, pages + 10 * PAGE, PAGE + 5, 0); }
MAP(munlock, pages) { return syscall(SYS_munlock, pages + 13 * PAGE, 2 * PAGE); }


/* A ring of asynchronous I/O, which is a mapping. */
static aio_context_t aio;
MAP(io_setup, ring) {
    aio_context_t other = 0;
    return syscall(SYS_io_setup, 4, &other);
}
MAP(io_submit, write) {
    struct iocb one = {.aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (uint32_t)lock_fd,
                       .aio_buf = (uintptr_t)"asynchronous", .aio_nbytes = 12, .aio_offset = 3};
    struct iocb *all[] = {&one};
    return (!aio && syscall(SYS_io_setup, 4, &aio)) || syscall(SYS_io_submit, aio, 1, all) != 1 ? -1 : 0;
}
/* Of the one before. */
MAP(io_destroy, ring) { return syscall(SYS_io_destroy, aio); }

#define ROW(call, how) {#call, #how, 0, call##_##how}
const struct effect memory_effects[] = {
    ROW(mmap, anonymous), ROW(mmap, file), ROW(mmap, written), ROW(mmap, over), ROW(mprotect, none),
    {"mremap", "shorter", INVISIBLE, mremap_shorter}, ROW(mremap, move), ROW(brk, more),
    {"madvise", "zero", INVISIBLE, madvise_zero}, ROW(mlock, pages), ROW(mlock2, pages), ROW(munlock, pages),
    ROW(munmap, part), ROW(munmap, locked), ROW(io_setup, ring), ROW(io_submit, write), ROW(io_destroy, ring),
    {0},
};
