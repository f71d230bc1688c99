// A server that has forbidden itself some system calls. The port is the argument.
//
// `kill` and `trap` make calls that are forbidden, `fail` one that fails; anything else is answered with `ok`.
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "serve.h"

static volatile int requests;

static int forbid(int number, unsigned value)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, value),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = 4, .filter = filter};
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int serve(int fd)
{
	char line[64] = "", answer[64];
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	requests++;
	if (strcmp(line, "kill") == 0)
		syscall(SYS_getppid);
	if (strcmp(line, "trap") == 0)
		syscall(SYS_getuid);
	if (strcmp(line, "fail") == 0 && (syscall(SYS_getgid) != -1 || errno != ENOTTY))
		_exit(3);
	int len = snprintf(answer, sizeof answer, "ok %d\n", requests);
	return write(fd, answer, (size_t)len) == len;
}

int main(int argc, char **argv)
{
	if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return 2;
	if (forbid(SYS_getppid, SECCOMP_RET_KILL_PROCESS) || forbid(SYS_getuid, SECCOMP_RET_TRAP) ||
	    forbid(SYS_getgid, SECCOMP_RET_ERRNO | ENOTTY))
		return 3;
	return serve_all(argv[1], serve);
}
