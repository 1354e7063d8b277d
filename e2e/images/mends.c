// mends ADDRESS: holds what a plain restore on another node would break, and says in each line whether it still works.
//   NUMBER timer=EXPIRATIONS stderr=ERRNO udp=ADDRESS:PORT shm=MAPPED/FILE
// timer: how often a periodic timerfd has expired so far; it stops growing when the timer is dead
// stderr: 0, or why /dev/stderr cannot be opened again (a program that is not root needs its pipe to be its own)
// udp: where a socket is bound that was bound to ADDRESS, the pod's own, before the move
// shm: the number in a mapped segment of /dev/shm, and the one that is read from the segment's file by its name
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define SEGMENT "/mends"

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long read_segment(void) {
    long number = -1;
    int file = shm_open(SEGMENT, O_RDONLY, 0);
    if (file < 0 || read(file, &number, sizeof number) != sizeof number) number = -errno;
    if (file >= 0) close(file);
    return number;
}

int main(int argc, char **argv) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec tenth = {.it_interval = {0, 100000000}, .it_value = {0, 100000000}};
    if (timer < 0 || timerfd_settime(timer, 0, &tenth, NULL)) die("timerfd");

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(5353)};
    if (argc < 2 || inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) die("ADDRESS");
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (udp < 0 || bind(udp, (struct sockaddr *)&address, sizeof address)) die("bind");

    int file = shm_open(SEGMENT, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 1 << 20)) die("shm_open");
    volatile long *shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED) die("mmap");
    close(file);

    setvbuf(stdout, NULL, _IOLBF, 0);
    uint64_t expirations = 0;
    for (long n = 1;; n++) {
        uint64_t more;
        if (read(timer, &more, sizeof more) == sizeof more) expirations += more;
        int again = open("/dev/stderr", O_WRONLY);
        int error = again < 0 ? errno : 0;
        if (again >= 0) close(again);
        socklen_t length = sizeof address;
        char text[INET_ADDRSTRLEN] = "?";
        if (!getsockname(udp, (struct sockaddr *)&address, &length)) inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
        *shared = n;
        printf("%ld timer=%lu stderr=%d udp=%s:%d shm=%ld/%ld\n", n, (unsigned long)expirations, error, text, ntohs(address.sin_port), *shared,
               read_segment());
        usleep(20000);
    }
}
