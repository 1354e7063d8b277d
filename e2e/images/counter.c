// counter MIB MS: fills MIB mebibytes with numbers that no compression shrinks, then prints a line with the next number
// and the time every MS milliseconds. The number lives in memory only, so a gap or a repetition shows a lost or a
// second copy.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    long bytes = (argc > 1 ? atol(argv[1]) : 0) << 20;
    int interval = argc > 2 ? atoi(argv[2]) : 100;
    char *memory = malloc(bytes + 1);
    if (!memory) {
        perror("malloc");
        return 1;
    }
    unsigned long random = 88172645463325252UL;
    for (long i = 0; i < bytes; i += sizeof random) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        memcpy(memory + i, &random, sizeof random);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long n = 1;; n++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        printf("%ld %ld.%03ld\n", n, now.tv_sec, now.tv_nsec / 1000000);
        usleep(interval * 1000);
    }
}
