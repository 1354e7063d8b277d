// checks MIB MS PAGES: fills MIB mebibytes with pages that each carry their own checksum, then, every MS milliseconds, reads PAGES of them at random,
// changes them, and prints a line as counter does. Every tenth round a child of its own reads as many. A page that is not what was written to it is told in a
// line that begins with BAD: memory that came late, twice or not at all shows.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512 };

static unsigned long state = 88172645463325252UL;

static unsigned long random_word(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

// Its own number is part of it, so that a page in another's place is found out.
static unsigned long checksum(const unsigned long *page, long number) {
    unsigned long sum = number + 1;
    for (int i = 0; i < WORDS - 1; i++) sum = (sum << 7 | sum >> 57) ^ page[i];
    return sum;
}

static int is_whole(const unsigned long *page, long number) { return page[WORDS - 1] == checksum(page, number); }

static void change(unsigned long *page, long number) {
    page[random_word() % (WORDS - 1)] = random_word();
    page[WORDS - 1] = checksum(page, number);
}

static long read_some(unsigned long *memory, long pages, int count, int also_change) {
    long bad = -1;
    for (int i = 0; i < count; i++) {
        long number = random_word() % pages;
        unsigned long *page = memory + number * WORDS;
        if (!is_whole(page, number)) bad = number;
        else if (also_change) change(page, number);
    }
    return bad;
}

int main(int argc, char **argv) {
    long mebibytes = argc > 1 ? atol(argv[1]) : 1, pages = mebibytes << 8;
    int interval = argc > 2 ? atoi(argv[2]) : 100, count = argc > 3 ? atoi(argv[3]) : 10;
    unsigned long *memory = mmap(NULL, mebibytes << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    for (long number = 0; number < pages; number++) {
        unsigned long *page = memory + number * WORDS;
        for (int i = 0; i < WORDS - 1; i++) page[i] = random_word();
        page[WORDS - 1] = checksum(page, number);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long n = 1;; n++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        long bad = read_some(memory, pages, count, 1);
        if (bad >= 0) printf("BAD page %ld\n", bad);
        if (n % 10 == 0) {
            pid_t child = fork();
            if (child == 0) _exit(read_some(memory, pages, count, 0) >= 0);
            int status = 0;
            if (child < 0 || waitpid(child, &status, 0) != child || status != 0) printf("BAD child %d\n", status);
        }
        printf("%ld %ld.%03ld\n", n, now.tv_sec, now.tv_nsec / 1000000);
        usleep(interval * 1000);
    }
}
