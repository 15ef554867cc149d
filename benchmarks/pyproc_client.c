/* SPDX-License-Identifier: Apache-2.0
 *
 * The least that a client of pyproc's wire can be: each caller is a thread with one connection that writes a request,
 * reads its reply to the end, checks id and outcome, and goes on.
 *
 *   pyproc_client SECONDS CALLERS METHOD BYTES SOCKET...
 *
 * Caller i connects to socket i modulo their number. BYTES of 0 sends {"value": 42}, else {"data": "xxx..."} of that
 * size. Prints one line: calls, errors, seconds, and p50, p99 and the mean of a call in nanoseconds.
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct caller {
    pthread_t thread;
    const char *path, *method;
    size_t bytes;
    double seconds;
    uint32_t *samples; /* nanoseconds */
    size_t count, room;
    long errors;
};

static pthread_barrier_t barrier;

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int write_all(int fd, const char *data, size_t left) {
    while (left > 0) {
        ssize_t written = send(fd, data, left, MSG_NOSIGNAL);
        if (written <= 0) return -1;
        data += written, left -= (size_t)written;
    }
    return 0;
}

static int64_t read_frame(int fd, char **buffer, size_t *room) {
    size_t have = 0, want = 4;
    for (;;) {
        ssize_t got = recv(fd, *buffer + have, *room - have - 1, 0);
        if (got <= 0) return -1;
        have += (size_t)got;
        if (have < 4) continue;
        uint32_t length;
        memcpy(&length, *buffer, 4);
        want = 4 + (size_t)ntohl(length);
        if (want + 1 > *room) {
            *room = want + 1;
            *buffer = realloc(*buffer, *room);
        }
        if (have == want) {
            (*buffer)[have] = 0;
            return (int64_t)want;
        }
        if (have > want) return -1;
    }
}

static void *call(void *argument) {
    struct caller *self = argument;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, self->path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int connected = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    size_t room = 1 << 16;
    char *reply = malloc(room), *request = malloc(self->bytes + 512), expected[64];
    uint64_t id = 0;
    pthread_barrier_wait(&barrier);
    int64_t end = now() + (int64_t)(self->seconds * 1e9);
    while (connected) {
        int64_t begin = now();
        if (begin > end && id > 0) break; /* one is made at least, however late it is */
        int head = sprintf(request + 4, "{\"id\":%llu,\"method\":\"%s\",\"body\":", (unsigned long long)++id, self->method);
        size_t length = (size_t)head;
        if (self->bytes) {
            length += (size_t)sprintf(request + 4 + length, "{\"data\":\"");
            memset(request + 4 + length, 'x', self->bytes);
            length += self->bytes;
            length += (size_t)sprintf(request + 4 + length, "\"}}");
        } else {
            length += (size_t)sprintf(request + 4 + length, "{\"value\":42}}");
        }
        uint32_t network = htonl((uint32_t)length);
        memcpy(request, &network, 4);
        size_t wanted = (size_t)sprintf(expected, "{\"id\":%llu,\"ok\":true,\"body\":", (unsigned long long)id);
        if (write_all(fd, request, length + 4) < 0 || read_frame(fd, &reply, &room) < 0) {
            self->errors++;
            break;
        }
        if (memcmp(reply + 4, expected, wanted) != 0) self->errors++;
        int64_t taken = now() - begin;
        if (self->count < self->room) self->samples[self->count++] = taken > UINT32_MAX ? UINT32_MAX : (uint32_t)taken;
    }
    if (!connected) self->errors++;
    close(fd);
    free(reply), free(request);
    return NULL;
}

static int ascending(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fprintf(stderr, "usage: %s SECONDS CALLERS METHOD BYTES SOCKET...\n", argv[0]);
        return 2;
    }
    int callers = atoi(argv[2]), sockets = argc - 5;
    struct caller *all = calloc((size_t)callers, sizeof *all);
    pthread_barrier_init(&barrier, NULL, (unsigned)callers + 1);
    for (int i = 0; i < callers; i++) {
        all[i].path = argv[5 + i % sockets], all[i].method = argv[3];
        all[i].bytes = (size_t)atol(argv[4]), all[i].seconds = atof(argv[1]);
        all[i].room = 1 << 20;
        all[i].samples = malloc(all[i].room * sizeof *all[i].samples);
        pthread_create(&all[i].thread, NULL, call, &all[i]);
    }
    pthread_barrier_wait(&barrier);
    int64_t begin = now();
    size_t count = 0;
    long errors = 0;
    for (int i = 0; i < callers; i++) {
        pthread_join(all[i].thread, NULL);
        count += all[i].count, errors += all[i].errors;
    }
    double seconds = (double)(now() - begin) / 1e9, sum = 0;
    uint32_t *samples = malloc((count + 1) * sizeof *samples);
    size_t at = 0;
    for (int i = 0; i < callers; i++)
        for (size_t j = 0; j < all[i].count; j++) sum += all[i].samples[j], samples[at++] = all[i].samples[j];
    qsort(samples, count, sizeof *samples, ascending);
    if (count == 0) samples[0] = 0;
    printf("{\"calls\": %zu, \"errors\": %ld, \"seconds\": %.4f, \"p50\": %u, \"p99\": %u, \"mean\": %.0f}\n", count, errors,
           seconds, samples[count / 2], samples[count * 99 / 100], count ? sum / (double)count : 0.0);
    return 0;
}
