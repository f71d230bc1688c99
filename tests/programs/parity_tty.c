/* Pseudo-terminals: their requests, the bytes that go through them, and a session with a controlling one. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define T(e) do { errno = 0; long r = (long)(e); printf("%s = %s %s\n", #e, r < 0 ? "-1" : "ok", r < 0 ? strerrorname_np(errno) : ""); } while (0)
#define N(e) do { errno = 0; long r = (long)(e); printf("%s = %ld %s\n", #e, r, r < 0 ? strerrorname_np(errno) : ""); } while (0)

static int master, slave, n;
static char text[256];
static volatile sig_atomic_t signals[65];

static void count(int number) { signals[number]++; }

/* What comes within a second, up to `end`. */
static const char *hear(int fd, char end) {
    size_t len = 0;
    struct pollfd entry = {fd, POLLIN, 0};
    while (len < sizeof text - 1 && poll(&entry, 1, 5000) > 0 && read(fd, text + len, 1) == 1)
        if (text[len++] == end)
            break;
    text[len] = 0;
    return text;
}

static void show(const char *what, const char *bytes) {
    printf("%s: ", what);
    for (; *bytes; bytes++)
        printf(*bytes < 32 ? "\\%o" : "%c", *bytes);
    printf("\n");
}

static void requests(void) {
    struct winsize size = {24, 80, 1, 2};
    struct termios settings, again;
    T(openpty(&master, &slave, NULL, NULL, &size));
    T(isatty(master)); T(isatty(slave));
    N(ptsname_r(master, text, sizeof text)); N(ioctl(slave, TIOCGPTN, &n)); N(ioctl(master, TIOCGPTN, NULL));
    n = 0; T(ioctl(master, TIOCSPTLCK, &n)); n = 7; N(ioctl(master, TIOCGPTLCK, &n)); N(n);
    n = 1; T(ioctl(master, TIOCSPTLCK, &n)); N(ioctl(master, TIOCGPTLCK, &n)); N(n);
    T(ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY)); n = 0; T(ioctl(master, TIOCSPTLCK, &n));
    n = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    N(n > 2); N(fcntl(n, F_GETFD)); N(close(n));
    n = 1; T(ioctl(master, TIOCPKT, &n)); N(ioctl(master, TIOCGPKT, &n)); N(n); n = 0; T(ioctl(master, TIOCPKT, &n));
    memset(&size, 0, sizeof size); N(ioctl(master, TIOCGWINSZ, &size)); N(size.ws_row); N(size.ws_col); N(size.ws_ypixel);
    size.ws_row = 50; N(ioctl(slave, TIOCSWINSZ, &size)); size.ws_row = 0; N(ioctl(master, TIOCGWINSZ, &size)); N(size.ws_row);
    N(tcgetattr(slave, &settings)); N(settings.c_lflag & ECHO); N(settings.c_oflag & OPOST); N(settings.c_cc[VINTR]);
    again = settings; cfmakeraw(&again); N(tcsetattr(slave, TCSANOW, &again)); N(tcsetattr(slave, TCSADRAIN, &settings));
    N(tcsetattr(slave, TCSAFLUSH, &again)); N(tcgetattr(slave, &settings)); N(settings.c_lflag & ECHO);
    N(tcsetattr(master, TCSANOW, &settings)); N(tcsetattr(slave, 17, &settings)); N(ioctl(slave, TCSETS, NULL));
    T(ioctl(slave, TCGETA, text)); T(ioctl(slave, TCSETA, text)); T(ioctl(slave, 0x802c542a, text)); T(ioctl(slave, 0x402c542b, text));
    N(ioctl(slave, TIOCGETD, &n)); N(n); N(ioctl(slave, TIOCSETD, &n)); n = 99; N(ioctl(slave, TIOCSETD, &n));
    N(ioctl(slave, TIOCEXCL)); N(ioctl(slave, 0x80045440, &n)); N(n); N(ioctl(slave, TIOCNXCL)); N(ioctl(slave, 0x80045440, &n)); N(n);
    N(tcflush(slave, TCIOFLUSH)); N(tcflow(slave, TCOOFF)); N(tcflow(slave, TCOON)); N(tcdrain(slave)); N(tcsendbreak(slave, 0));
    N(tcflush(slave, 9)); N(tcgetpgrp(slave)); N(tcgetsid(slave)); N(tcsetpgrp(slave, getpid())); N(ioctl(slave, TIOCMGET, &n));
    N(ioctl(slave, TIOCGSERIAL, text)); N(ioctl(slave, 0x4b33, text)); N(ioctl(slave, TIOCNOTTY)); N(ioctl(slave, FIONREAD, &n)); N(n);
    N(ioctl(slave, TIOCOUTQ, &n)); N(n);
}

static void no_terminals(void) {
    int others[] = {open("/dev/null", O_RDWR), open("/", O_RDONLY), open("/", O_PATH), -1, 999};
    unsigned long numbers[] = {TCGETS, TIOCGWINSZ, TIOCGPTN, TIOCSPTLCK, TIOCSCTTY, TIOCSPGRP, TIOCNOTTY, FIOCLEX, FIONBIO, 0x1234, 0x8933, 0x5441};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 12; k++) {
            int value = 0;
            printf("%d %lx: ", i, numbers[k]);
            N(ioctl(others[i], numbers[k], &value));
        }
}

static void bytes(void) {
    close(master), close(slave);
    T(openpty(&master, &slave, NULL, NULL, NULL));
    N(write(master, "hello\n", 6)); show("echo", hear(master, '\n')); N(ioctl(slave, FIONREAD, &n)); N(n); show("line", hear(slave, '\n'));
    N(write(slave, "a\nb\n", 4)); show("output", hear(master, '\n')); show("output", hear(master, '\n'));
    N(write(master, "gone\025left\n", 10)); show("edited", hear(slave, '\n')); N(write(master, "\004", 1)); N(read(slave, text, 9));
    N(tcflush(master, TCIFLUSH)); N(fcntl(master, F_SETFL, O_NONBLOCK));
    N(close(slave)); hear(master, 0); N(read(master, text, 9)); N(ioctl(master, FIONREAD, &n));
}

static void child(int quiet) {
    printf("setsid %d\n", setsid() == getpid());
    signal(SIGWINCH, count); signal(SIGINT, count); signal(SIGHUP, count); signal(SIGCONT, count);
    N(tcgetpgrp(slave)); N(ioctl(slave, TIOCSCTTY, 0)); N(tcgetpgrp(slave) == getpid()); N(tcgetsid(slave) == getpid());
    N(tcsetpgrp(slave, 1)); N(tcsetpgrp(slave, getpid())); N(open("/dev/tty", O_RDWR) > 2); N(ioctl(slave, TIOCSTI, "\0") <= 0);
    fflush(stdout);
    /* A job in the background that is stopped when it writes the foreground, and one that ignores that. */
    pid_t job = fork();
    if (!job) {
        setpgid(0, 0);
        tcsetpgrp(slave, getpid());
        _exit(3);
    }
    int status;
    waitpid(job, &status, WUNTRACED); printf("stopped %d by %d\n", WIFSTOPPED(status), WIFSTOPPED(status) ? WSTOPSIG(status) : status);
    kill(job, SIGKILL); waitpid(job, &status, 0);
    job = fork();
    if (!job) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_IGN);
        _exit(tcsetpgrp(slave, getpid()) ? 4 : tcgetpgrp(slave) == getpid() ? 5 : 6);
    }
    waitpid(job, &status, 0); printf("status %d\n", WEXITSTATUS(status));
    signal(SIGTTOU, SIG_IGN); N(tcsetpgrp(slave, getpid()));
    sigset_t all, none;
    sigfillset(&all), sigemptyset(&none), sigprocmask(SIG_SETMASK, &all, NULL);
    fflush(stdout);
    write(quiet, "r", 1);
    while (!signals[SIGWINCH]) sigsuspend(&none);
    while (!signals[SIGINT]) sigsuspend(&none);
    printf("winch %d int %d\n", signals[SIGWINCH], signals[SIGINT]); fflush(stdout);
    write(quiet, "s", 1);
    while (!signals[SIGHUP]) sigsuspend(&none);
    printf("hup %d cont %d\n", signals[SIGHUP] > 0, signals[SIGCONT] > 0);
    N(read(slave, text, 1)); N(write(slave, "x", 1)); N(tcgetattr(slave, (void *)text)); N(ioctl(slave, TIOCSPGRP, &n));
    fflush(stdout);
    _exit(7);
}

static void session(void) {
    int ready[2], status;
    char byte;
    T(openpty(&master, &slave, NULL, NULL, NULL)); T(pipe(ready)); fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        close(master);
        child(ready[1]);
    }
    close(slave);
    N(read(ready[0], &byte, 1));
    struct winsize size = {10, 20, 0, 0};
    N(ioctl(master, TIOCSWINSZ, &size)); N(write(master, "\003", 1)); N(read(ready[0], &byte, 1)); N(tcgetpgrp(master) == pid);
    fflush(stdout);
    N(close(master)); N(waitpid(pid, &status, 0) == pid); N(WEXITSTATUS(status));
}

int main(void) {
    setvbuf(stdout, NULL, _IOFBF, 1 << 16);
    requests(); no_terminals(); bytes(); session(); fflush(stdout);
    pid_t pid = forkpty(&master, NULL, NULL, NULL);
    if (!pid) {
        printf("%d %d\n", isatty(0), tcgetpgrp(0) == getpid());
        fflush(stdout);
        _exit(0);
    }
    show("forkpty", hear(master, '\n')); N(waitpid(pid, NULL, 0) == pid);
    fflush(stdout);
    return 0;
}
