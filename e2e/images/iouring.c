// Holds an io_uring, made by the raw system call, and counts. CRIU refuses to checkpoint such a process
// ("anon_inode:[io_uring]"), so a migration of it must be refused before anything is frozen.
#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
    struct io_uring_params params = {0};
    long ring = syscall(SYS_io_uring_setup, 8, &params);
    if (ring < 0) {
        fprintf(stderr, "io_uring_setup: %s\n", strerror(errno));
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long n = 1;; n++) {
        printf("%ld ring %ld\n", n, ring);
        usleep(100 * 1000);
    }
}
