/* System V shared memory, semaphores and message queues, and POSIX message queues, between a process and its child. */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct message {
    long type;
    char text[100];
};

static int semaphore(int set, int number, int change, int flags)
{
    struct sembuf operation = { (unsigned short)number, (short)change, (short)flags };
    return semop(set, &operation, 1);
}

static void shared_memory(void)
{
    int id = shmget(IPC_PRIVATE, 10000, IPC_CREAT | 0600);
    struct shmid_ds status;
    char *first = shmat(id, NULL, 0), *second = shmat(id, NULL, SHM_RDONLY);
    if (id < 0 || first == (void *)-1 || second == (void *)-1) {
        perror("shm");
        return;
    }
    strcpy(first, "parent");
    printf("two mappings: %s %s\n", first, second);
    if (shmctl(id, IPC_STAT, &status))
        perror("IPC_STAT");
    printf("size %zu, attached %lu\n", status.shm_segsz, (unsigned long)status.shm_nattch);
    pid_t child = fork();
    if (child == 0) {
        strcpy(first + 5000, "child");
        printf("the child sees %s\n", second);
        fflush(stdout);
        _exit(shmdt(second) | shmdt(first));
    }
    int how;
    waitpid(child, &how, 0);
    printf("the child ended with %d and left %s\n", how, first + 5000);
    printf("removed: %d\n", shmctl(id, IPC_RMID, NULL));
    printf("detached: %d, ", shmdt(second));
    printf("again: %d, ", shmdt(second));
    printf("%s\n", errno == EINVAL ? "EINVAL" : strerror(errno));
    printf("the other one: %s %s\n", first, first + 5000);
    printf("misplaced: %d\n", shmat(id, first + 1, 0) == (void *)-1 ? errno : 0);
    printf("detached: %d\n", shmdt(first));
    printf("gone: %d\n", shmat(id, NULL, 0) == (void *)-1 ? errno : 0);

    id = shmget(IPC_PRIVATE, 4096, 0600);
    char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("over a mapping: %d\n", shmat(id, page, 0) == (void *)-1 ? errno : 0);
    char *at = shmat(id, page, SHM_REMAP);
    strcpy(at, "replaced");
    printf("in its place: %d %s\n", at == page, page);
    shmctl(id, IPC_RMID, NULL);
}

static void semaphores(void)
{
    int set = semget(IPC_PRIVATE, 3, 0600);
    unsigned short values[3] = { 4, 5, 6 };
    printf("SETALL %d, ", semctl(set, 0, SETALL, values));
    printf("SETVAL %d, GETVAL %d\n", semctl(set, 1, SETVAL, 1), semctl(set, 1, GETVAL));
    memset(values, 0, sizeof values);
    semctl(set, 0, GETALL, values);
    printf("GETALL %d %d %d\n", values[0], values[1], values[2]);
    struct semid_ds status;
    semctl(set, 0, IPC_STAT, &status);
    printf("%lu semaphores\n", (unsigned long)status.sem_nsems);
    printf("taken: %d\n", semaphore(set, 1, -1, 0));
    printf("no more: %d\n", semaphore(set, 1, -1, IPC_NOWAIT) ? errno : 0);
    struct timespec soon = { 0, 20000000 };
    struct sembuf operation = { 1, -1, 0 };
    printf("in time: %d\n", semtimedop(set, &operation, 1, &soon) ? errno : 0);
    pid_t child = fork();
    if (child == 0) {
        usleep(20000);
        _exit(semaphore(set, 1, 1, 0));
    }
    printf("the child gives one: %d\n", semaphore(set, 1, -1, 0));
    waitpid(child, NULL, 0);
    printf("no operations: %d\n", semop(set, &operation, 0) ? errno : 0);
    printf("removed: %d\n", semctl(set, 0, IPC_RMID));
    printf("gone: %d\n", semaphore(set, 0, 1, 0) ? errno : 0);
}

static void messages(void)
{
    int queue = msgget(IPC_PRIVATE, 0600);
    struct message message = { 7, "seven" };
    printf("sent: %d\n", msgsnd(queue, &message, 6, 0));
    message.type = 3;
    strcpy(message.text, "three");
    printf("sent: %d\n", msgsnd(queue, &message, 6, 0));
    struct msqid_ds status;
    msgctl(queue, IPC_STAT, &status);
    printf("%lu messages\n", (unsigned long)status.msg_qnum);
    memset(&message, 0, sizeof message);
    printf("received: %zd", msgrcv(queue, &message, sizeof message.text, 3, 0));
    printf(" %ld %s\n", message.type, message.text);
    printf("too long: %d\n", msgrcv(queue, &message, 2, 0, 0) < 0 ? errno : 0);
    printf("cut off: %zd", msgrcv(queue, &message, 2, 0, MSG_NOERROR));
    printf(" %.2s\n", message.text);
    printf("none: %d\n", msgrcv(queue, &message, 2, 0, IPC_NOWAIT) < 0 ? errno : 0);
    pid_t child = fork();
    if (child == 0) {
        usleep(20000);
        message.type = 1;
        strcpy(message.text, "from the child");
        _exit(msgsnd(queue, &message, 15, 0));
    }
    printf("received: %zd", msgrcv(queue, &message, sizeof message.text, 0, 0));
    printf(" %s\n", message.text);
    waitpid(child, NULL, 0);
    printf("removed: %d\n", msgctl(queue, IPC_RMID, NULL));
}

static void posix_messages(void)
{
    struct mq_attr attributes = { .mq_maxmsg = 4, .mq_msgsize = 64 };
    mqd_t queue = mq_open("/vmsrs-parity", O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    printf("a queue: %d\n", queue == (mqd_t)-1 ? errno : 0);
    mq_unlink("/vmsrs-parity");
    char text[64] = "";
    unsigned priority = 0;
    printf("sent: %d %d\n", mq_send(queue, "low", 4, 1), mq_send(queue, "high", 5, 9));
    printf("received: %zd", mq_receive(queue, text, sizeof text, &priority));
    printf(" %s %u\n", text, priority);
    printf("too small: %d\n", mq_receive(queue, text, 10, NULL) < 0 ? errno : 0);
    mq_receive(queue, text, sizeof text, NULL);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec = (soon.tv_nsec + 20000000) % 1000000000;
    soon.tv_sec += soon.tv_nsec < 20000000;
    printf("in time: %d\n", mq_timedreceive(queue, text, sizeof text, NULL, &soon) < 0 ? errno : 0);
    pid_t child = fork();
    if (child == 0) {
        usleep(20000);
        _exit(mq_send(queue, "from the child", 15, 0));
    }
    printf("received: %zd", mq_receive(queue, text, sizeof text, NULL));
    printf(" %s\n", text);
    waitpid(child, NULL, 0);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    shared_memory();
    semaphores();
    messages();
    posix_messages();
    return 0;
}
