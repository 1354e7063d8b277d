// Counts, and holds an io_uring, made by the raw system call. CRIU refuses to checkpoint such a process
// ("anon_inode:[io_uring]"), so a migration of it must be refused before anything is frozen.
//   iouring         has the ring from its start
//   iouring late    makes it when it is woken: what preflight could not have seen
//   iouring wake    wakes the first process of its PID namespace
#include <errno.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile sig_atomic_t awake = 1;

static void wake(int signal) {
    (void)signal;
    awake = 1;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "wake")) return kill(1, SIGUSR1) ? 1 : 0;
    if (!strcmp(what, "late")) {
        awake = 0;
        signal(SIGUSR1, wake);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    long ring = -1;
    for (long n = 1;; n++) {
        if (awake && ring < 0) {
            struct io_uring_params params = {0};
            ring = syscall(SYS_io_uring_setup, 8, &params);
            if (ring < 0) {
                fprintf(stderr, "io_uring_setup: %s\n", strerror(errno));
                return 1;
            }
        }
        printf("%ld ring %ld\n", n, ring);
        usleep(100 * 1000);
    }
}
