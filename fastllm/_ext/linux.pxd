"""What the reader asks of Linux: threads, futexes, reads with flags, huge pages. Declarations and
the few lines that only C can say; the reasons are in `reader.pyx`.
"""
from libc.stdint cimport int32_t, int64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <linux/futex.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define SYS_CACHESTAT 451                   /* Linux 6.5, the same on every architecture */
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 0x08
    #endif
    #ifndef RWF_DONTCACHE                       /* Linux 6.14 */
    #define RWF_DONTCACHE 0x80
    #endif
    #ifndef MADV_HUGEPAGE
    #define MADV_HUGEPAGE 14
    #endif
    #ifndef MADV_POPULATE_WRITE                 /* Linux 5.14 */
    #define MADV_POPULATE_WRITE 23
    #endif

    static inline int32_t word_load(int32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline int32_t word_add(int32_t *p, int32_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline int word_set_once(int32_t *p, int32_t v) {    /* whether it was 0 and is v now */
        int32_t zero = 0;
        return __atomic_compare_exchange_n(p, &zero, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
    }
    static inline void futex_wait(int32_t *p, int32_t seen, long timeout_ms) {
        struct timespec t = {timeout_ms / 1000, timeout_ms % 1000 * 1000000};
        syscall(SYS_futex, p, FUTEX_WAIT_PRIVATE, seen, timeout_ms ? &t : 0, 0, 0);
    }
    static inline void futex_wake(int32_t *p, int n) { syscall(SYS_futex, p, FUTEX_WAKE_PRIVATE, n, 0, 0, 0); }
    static inline int last_errno(void) { return errno; }

    /* preadv2 and cachestat by number: old C libraries lack them, an old kernel says ENOSYS. */
    static ssize_t pread_flags(int fd, void *dst, size_t n, int64_t offset, int flags) {
    #ifdef SYS_preadv2
        struct iovec v = {dst, n};
        return syscall(SYS_preadv2, fd, &v, 1L, (long)offset, (long)(offset >> 32), flags);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }

    /* Whether the page cache holds all of the range; -1 and errno where nobody can tell. */
    static int in_cache(int fd, int64_t offset, int64_t n) {
        struct { uint64_t offset, length; } range = {offset, n};
        struct { uint64_t cached, dirty, writeback, evicted, recently_evicted; } pages;
        const uint64_t page = sysconf(_SC_PAGESIZE);
        if (syscall(SYS_CACHESTAT, fd, &range, &pages, 0)) return -1;
        return pages.cached >= (offset + n - 1) / page - offset / page + 1;
    }

    /* Signals belong to Python's main thread, so ours block them all. 256 KiB of stack is plenty. */
    static int start_thread(pthread_t *t, void *(*run)(void *), void *arg) {
        sigset_t all, before;
        pthread_attr_t attr;
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, 256 << 10);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        int e = pthread_create(t, &attr, run, arg);
        pthread_sigmask(SIG_SETMASK, &before, 0);
        pthread_attr_destroy(&attr);
        return e;
    }

    /* A mapping whose start and size are multiples of 2 MiB: only then can the kernel use huge pages,
       and a read into one is a single segment for the disk instead of one for every 4 KiB. */
    static void *huge_map(size_t n, int touch) {
        const size_t huge = (size_t)2 << 20;
        uint8_t *p = mmap(0, n + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return 0;
        uint8_t *q = (uint8_t *)(((uintptr_t)p + huge - 1) & ~(uintptr_t)(huge - 1));
        if (q > p) munmap(p, q - p);
        if (q < p + huge) munmap(q + n, p + huge - q);
        madvise(q, n, MADV_HUGEPAGE);           /* a wish: kernels without it still give small pages */
        if (touch && madvise(q, n, MADV_POPULATE_WRITE)) {
            if (errno != EINVAL) { munmap(q, n); return 0; }
            for (size_t i = 0; i < n; i += 4096) ((volatile uint8_t *)q)[i] = 0;
        }
        return q;
    }
    """
    int32_t word_load(int32_t *p) noexcept nogil
    int32_t word_add(int32_t *p, int32_t v) noexcept nogil
    int word_set_once(int32_t *p, int32_t v) noexcept nogil
    void futex_wait(int32_t *p, int32_t seen, long timeout_ms) noexcept nogil
    void futex_wake(int32_t *p, int n) noexcept nogil
    int last_errno() noexcept nogil
    ssize_t pread_flags(int fd, void *dst, size_t n, int64_t offset, int flags) noexcept nogil
    ssize_t pread(int fd, void *dst, size_t n, int64_t offset) noexcept nogil
    int in_cache(int fd, int64_t offset, int64_t n) noexcept nogil
    void *huge_map(size_t n, int touch) noexcept nogil
    int munmap(void *p, size_t n) noexcept nogil
    int getpid() noexcept nogil
    ctypedef struct pthread_t "pthread_t":
        pass
    ctypedef struct pthread_mutex_t "pthread_mutex_t":
        pass
    int start_thread(pthread_t *t, void *(*run)(void *) noexcept nogil, void *arg) noexcept nogil
    int pthread_join(pthread_t t, void **result) noexcept nogil
    int pthread_mutex_init(pthread_mutex_t *m, void *attr) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *m) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *m) noexcept nogil
    int RWF_NOWAIT, RWF_DONTCACHE, EINTR, EINVAL, ENODATA, ECANCELED
