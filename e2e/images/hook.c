// hook: reads its input and does nothing, as the cheapest OCI hook does.
// hook PROGRAM INPUT RUNS: starts PROGRAM with the file INPUT as its input, RUNS times, and prints how many microseconds
// each run took from before its start until its end was seen. Fails where PROGRAM does.
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000L + t.tv_nsec / 1000;
}

int main(int argc, char **argv) {
    char buffer[65536];
    if (argc != 4) {
        while (read(0, buffer, sizeof buffer) > 0) {
        }
        return 0;
    }
    char *arguments[] = {argv[1], NULL}, *environment[] = {NULL};
    for (int i = atoi(argv[3]); i > 0; i--) {
        posix_spawn_file_actions_t files;
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_addopen(&files, 0, argv[2], O_RDONLY, 0);
        pid_t pid;
        int status;
        long begin = now_us();
        if (posix_spawn(&pid, argv[1], &files, NULL, arguments, environment) || waitpid(pid, &status, 0) != pid || status) {
            fprintf(stderr, "%s failed\n", argv[1]);
            return 1;
        }
        printf("%ld\n", now_us() - begin);
        posix_spawn_file_actions_destroy(&files);
    }
    return 0;
}
