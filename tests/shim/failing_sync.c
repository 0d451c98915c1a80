// A disk whose syncs fail on order, preloaded into a program under test (LD_PRELOAD).
//
// SYNC_FAULT_ORDER names a file. While it exists, the syncs that it describes fail:
//
//     <errno> <once|lie|always> <file|dir|any> <part of the path>
//
// "always": as long as the order is there. "once": the first matching sync fails, takes the order away, and all later ones work.
// "lie": as "once", and every later sync of the same file or directory reports success and does nothing: that is what a kernel
// does that has dropped the pages it could not write. What failed is appended to SYNC_FAULT_ORDER with ".hits" behind it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum verdict { WORK, FAIL, LIE };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct { dev_t dev; ino_t ino; } lost[4096];
static size_t lost_count;

static int is_lost(const struct stat *st) {
    for (size_t i = 0; i < lost_count; i++)
        if (lost[i].dev == st->st_dev && lost[i].ino == st->st_ino) return 1;
    return 0;
}

static void note(const char *order, const char *call, const char *path) {
    char name[PATH_MAX + 8], line[PATH_MAX + 64];
    snprintf(name, sizeof name, "%s.hits", order);
    int out = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0) return;
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    if (length > 0 && write(out, line, (size_t)length) < 0) abort();
    close(out);
}

static int read_order(const char *order, int *error, char mode[8], char kind[8], char part[512]) {
    int in = open(order, O_RDONLY | O_CLOEXEC);
    if (in < 0) return 0;
    char text[640] = {0};
    ssize_t length = read(in, text, sizeof text - 1);
    close(in);
    part[0] = 0;
    return length > 0 && sscanf(text, "%d %7s %7s %511s", error, mode, kind, part) >= 3;
}

static enum verdict judge_locked(const char *order, const char *call, int fd) {
    char mode[8], kind[8], part[512], link[64], path[PATH_MAX];
    struct stat st;
    int error = EIO;
    if (fstat(fd, &st) != 0) return WORK;
    if (is_lost(&st)) return LIE;
    if (!read_order(order, &error, mode, kind, part)) return WORK;
    int wants_dir = strcmp(kind, "dir") == 0, wants_file = strcmp(kind, "file") == 0;
    if ((wants_dir && !S_ISDIR(st.st_mode)) || (wants_file && S_ISDIR(st.st_mode))) return WORK;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return WORK;
    path[length] = 0;
    if (!strstr(path, part)) return WORK;
    if (strcmp(mode, "always") != 0 && unlink(order) != 0) return WORK;
    if (strcmp(mode, "lie") == 0 && lost_count < sizeof lost / sizeof *lost) {
        lost[lost_count].dev = st.st_dev;
        lost[lost_count++].ino = st.st_ino;
    }
    note(order, call, path);
    errno = error;
    return FAIL;
}

static enum verdict judge(const char *call, int fd) {
    const char *order = getenv("SYNC_FAULT_ORDER");
    if (!order) return WORK;
    pthread_mutex_lock(&guard);
    errno = 0;
    enum verdict verdict = judge_locked(order, call, fd);
    int error = errno;
    pthread_mutex_unlock(&guard);
    errno = error;
    return verdict;
}

#define SYNC(name, fd, parameters, arguments, type)                 \
    type name parameters {                                          \
        static type(*real) parameters;                              \
        if (!real) *(void **)(&real) = dlsym(RTLD_NEXT, #name);     \
        switch (judge(#name, fd)) {                                 \
            case FAIL: return -1;                                   \
            case LIE: return 0;                                     \
            default: return real arguments;                         \
        }                                                           \
    }

SYNC(fsync, fd, (int fd), (fd), int)
SYNC(fdatasync, fd, (int fd), (fd), int)
SYNC(syncfs, fd, (int fd), (fd), int)
SYNC(sync_file_range, fd, (int fd, off64_t offset, off64_t count, unsigned flags), (fd, offset, count, flags), int)

// A write that syncs as it goes: only such flags make it one of ours, and a lie must still take the bytes.
static ssize_t write_synced(const char *name, int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    ssize_t (*real)(int, const struct iovec *, int, off64_t, int);
    *(void **)(&real) = dlsym(RTLD_NEXT, name);
    if (!(flags & (RWF_DSYNC | RWF_SYNC))) return real(fd, parts, count, offset, flags);
    switch (judge(name, fd)) {
        case FAIL: return -1;
        case LIE: return real(fd, parts, count, offset, flags & ~(RWF_DSYNC | RWF_SYNC));
        default: return real(fd, parts, count, offset, flags);
    }
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
    return write_synced("pwritev2", fd, parts, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
    return write_synced("pwritev64v2", fd, parts, count, offset, flags);
}
