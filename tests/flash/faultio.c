/* A disk that misbehaves, for tests: preloaded, it stands in front of the C library's positional
 * reads and disturbs those of the file whose name ends in $FAULT_FILE.
 *
 *   FAULT_EINTR=n     every n-th call fails with EINTR
 *   FAULT_SHORT=n     every n-th call returns less than was asked for, an odd number of bytes
 *   FAULT_AT=offset   a call that covers this byte fails with EIO
 *   FAULT_DELAY_MS=t  every call sleeps first
 *
 *   cc -O1 -fPIC -shared -o faultio.so faultio.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int ours(int fd) {
    char link[64], target[4096];
    const char *name = getenv("FAULT_FILE");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    if (n < 0 || !name || (size_t)n < strlen(name)) return 0;
    target[n] = 0;
    return strcmp(target + n - strlen(name), name) == 0;
}

static ssize_t disturbed(int fd, void *buffer, size_t size, off_t offset) {
    static long calls;
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) real = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    if (!ours(fd)) return real(fd, buffer, size, offset);
    long call = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    long interrupted = setting("FAULT_EINTR", 0), shortened = setting("FAULT_SHORT", 0);
    long bad = setting("FAULT_AT", -1);
    usleep(setting("FAULT_DELAY_MS", 0) * 1000);
    if (bad >= offset && bad < offset + (long)size) return errno = EIO, -1;
    if (interrupted && call % interrupted == 0) return errno = EINTR, -1;
    ssize_t got = real(fd, buffer, size, offset);
    if (shortened && call % shortened == 0 && got > 4100) got = got * 2 / 3 | 1;
    return got;
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset) {
    return disturbed(fd, buffer, size, offset);
}
ssize_t pread64(int fd, void *buffer, size_t size, off_t offset) {
    return disturbed(fd, buffer, size, offset);
}
/* Python's os.preadv; our callers pass one buffer and no flags. */
ssize_t preadv64v2(int fd, const struct iovec *v, int count, off_t offset, int flags) {
    (void)count, (void)flags;
    return disturbed(fd, v->iov_base, v->iov_len, offset);
}
ssize_t preadv64(int fd, const struct iovec *v, int count, off_t offset) {
    return preadv64v2(fd, v, count, offset, 0);
}
