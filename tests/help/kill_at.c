/* Kills the process at its n-th write below a folder, to be preloaded: LD_PRELOAD=kill_at.so.
 *
 * A write is whatever changes what is on disk below $KILL_BELOW: bytes of a file (of which the first half
 * still arrive), a file that is made, synced, renamed, cut or removed, a folder that is made or removed.
 * kill_at(n) arms it (0 disarms); num_writes() says how many there have been since. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long armed, done;

void kill_at(long n) {
    atomic_store(&done, 0);
    atomic_store(&armed, n);
}

long num_writes(void) { return atomic_load(&done); }

static int is_below(const char *path) {
    const char *folder = getenv("KILL_BELOW");
    return folder != NULL && strncmp(path, folder, strlen(folder)) == 0;
}

static int fd_is_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

/* Whether this is the write at which the process is to be killed. */
static int is_last(int below) { return below && atomic_fetch_add(&done, 1) + 1 == atomic_load(&armed); }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *bytes, size_t size) {
    if (is_last(fd_is_below(fd))) {
        REAL(write)(fd, bytes, size / 2);
        die();
    }
    return REAL(write)(fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (is_last(fd_is_below(fd))) die();
    return REAL(writev)(fd, parts, number);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place) {
    if (is_last(fd_is_below(fd))) {
        REAL(pwrite)(fd, bytes, size / 2, place);
        die();
    }
    return REAL(pwrite)(fd, bytes, size, place);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) {
    if (is_last(fd_is_below(fd))) {
        REAL(pwrite64)(fd, bytes, size / 2, place);
        die();
    }
    return REAL(pwrite64)(fd, bytes, size, place);
}

/* Of what takes a file descriptor, or a path. */
#define ON_FD(name, parameters, ...)              \
    int name parameters {                         \
        if (is_last(fd_is_below(fd))) die();      \
        return REAL(name)(__VA_ARGS__);           \
    }
#define ON_PATH(name, path, parameters, ...)      \
    int name parameters {                         \
        if (is_last(is_below(path))) die();       \
        return REAL(name)(__VA_ARGS__);           \
    }

ON_FD(fsync, (int fd), fd)
ON_FD(fdatasync, (int fd), fd)
ON_FD(ftruncate, (int fd, off_t size), fd, size)
ON_FD(ftruncate64, (int fd, off64_t size), fd, size)
ON_PATH(rename, to, (const char *from, const char *to), from, to)
ON_PATH(renameat, to, (int from_fd, const char *from, int to_fd, const char *to), from_fd, from, to_fd, to)
ON_PATH(unlink, path, (const char *path), path)
ON_PATH(rmdir, path, (const char *path), path)
ON_PATH(mkdir, path, (const char *path, mode_t mode), path, mode)

/* Relative to a folder: the folder says where. */
int unlinkat(int fd, const char *path, int flags) {
    if (is_last(path[0] == '/' ? is_below(path) : fd_is_below(fd))) die();
    return REAL(unlinkat)(fd, path, flags);
}

#define OPEN(name, lead, call)                                 \
    int name lead {                                            \
        va_list more;                                          \
        va_start(more, flags);                                 \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
        va_end(more);                                          \
        if (is_last(flags & O_CREAT && is_below(path))) die(); \
        return REAL(name) call;                                \
    }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
OPEN(openat64, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
