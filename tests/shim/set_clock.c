// A clock of its own for a program under test (LD_PRELOAD): CLOCK_OFFSET names a file with the seconds by which it is ahead of this machine's.
// Only the clock that people set is another; the one that measures spans runs as ever.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long ahead(void) {
    const char *name = getenv("CLOCK_OFFSET");
    int in = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (in < 0) return 0;
    char text[32] = {0};
    ssize_t length = read(in, text, sizeof text - 1);
    close(in);
    return length > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) *(void **)(&real) = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, time);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += ahead();
    return status;
}

time_t time(time_t *out) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now) != 0) return (time_t)-1;
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
