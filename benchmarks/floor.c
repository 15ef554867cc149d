/* SPDX-License-Identifier: Apache-2.0
 *
 * The floor: what two processes pay for a blocking ping-pong over a Unix socketpair, with no language runtime,
 * no framing and no serialisation in the way. A parent writes a message and reads one of equal size back.
 *
 *     floor PARENT_CPU CHILD_CPU MESSAGE_BYTES        (-1 leaves a process where the scheduler puts it)
 *
 * Commands are lines on standard input, each one number: how many round trips to make. The answer is that many
 * lines, each the nanoseconds of one round trip, unsorted and unfiltered. End of input ends the program.
 *
 * What always holds: both sides sleep in the kernel while they wait, so an idle floor costs the machine nothing;
 * every echoed message is compared with what was sent, and a wrong byte ends the program with an error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST_MESSAGE = 65536, LARGEST_BATCH = 10 * 1000 * 1000 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void pin(int cpu) {
    if (cpu < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
}

/* Returns 0 at an orderly end of the stream, else 1 once the whole message is in. */
static int read_all(int fd, char *into, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t got = read(fd, into + done, length - done);
        if (got == 0) return 0;
        if (got < 0) {
            if (errno == EINTR) continue;
            if (errno == ECONNRESET) return 0;
            fail("read");
        }
        done += (size_t)got;
    }
    return 1;
}

static void write_all(int fd, const char *from, size_t length) {
    size_t done = 0;
    while (done < length) {
        ssize_t put = write(fd, from + done, length - done);
        if (put < 0) {
            if (errno == EINTR) continue;
            fail("write");
        }
        done += (size_t)put;
    }
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void echo(int fd, size_t length) {
    static char message[LARGEST_MESSAGE];
    while (read_all(fd, message, length)) write_all(fd, message, length);
    _exit(0);
}

int main(int count_of_arguments, char **arguments) {
    if (count_of_arguments != 4) {
        fprintf(stderr, "usage: floor PARENT_CPU CHILD_CPU MESSAGE_BYTES\n");
        return 2;
    }
    int parent_cpu = atoi(arguments[1]), child_cpu = atoi(arguments[2]);
    long length = atol(arguments[3]);
    if (length < 1 || length > LARGEST_MESSAGE) {
        fprintf(stderr, "floor: a message has 1 to %d bytes\n", LARGEST_MESSAGE);
        return 2;
    }
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) fail("socketpair");
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        pin(child_cpu);
        echo(pair[1], (size_t)length);
    }
    close(pair[1]);
    pin(parent_cpu);

    static char sent[LARGEST_MESSAGE], received[LARGEST_MESSAGE];
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        long trips = atol(line);
        if (trips < 1 || trips > LARGEST_BATCH) {
            fprintf(stderr, "floor: a batch has 1 to %d round trips\n", LARGEST_BATCH);
            return 2;
        }
        int64_t *samples = malloc((size_t)trips * sizeof *samples);
        if (!samples) fail("malloc");
        for (long i = 0; i < trips; i++) {
            memset(sent, (int)(i & 0xff), (size_t)length);
            int64_t begin = now();
            write_all(pair[0], sent, (size_t)length);
            if (!read_all(pair[0], received, (size_t)length)) {
                fprintf(stderr, "floor: the echo process ended\n");
                return 1;
            }
            samples[i] = now() - begin;
            if (memcmp(sent, received, (size_t)length) != 0) {
                fprintf(stderr, "floor: a message came back changed\n");
                return 1;
            }
        }
        for (long i = 0; i < trips; i++) printf("%lld\n", (long long)samples[i]);
        fflush(stdout);
        free(samples);
    }
    close(pair[0]);
    waitpid(child, NULL, 0);
    return 0;
}
