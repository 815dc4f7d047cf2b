# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""Many positional reads into the caller's memory, by threads that never hold the GIL.

Design. A `Pool` is a few pthreads around a ring of requests guarded by a mutex. `Pool.submit` posts
all requests of a batch under one lock and wakes only as many threads as there is work for; a `Batch`
counts its unfinished requests down, and whoever brings the count to zero wakes the waiter (futex).
At the request rates of one disk (< 100 000 a second) the mutex costs less than 1 %, two futex
wake-ups per batch are the rest. Nobody spins: on a small machine a spinning waiter takes the core
from the thread that must issue the next read.

Roads. A request whose bytes are all in the page cache is copied from there (``cachestat`` tells
without touching the disk), so a cached file arrives at the speed of memory. Anything else is read
past the cache (``O_DIRECT``) when the caller has such a descriptor, else through it, without leaving
a trace where the kernel can do that (``RWF_DONTCACHE``). Linux before 6.5 has no ``cachestat``, but
its ``RWF_NOWAIT`` reads take what is cached and nothing more; later that flag starts read-ahead,
which would read everything twice (measured on 6.18: 1.2 GB/s instead of 3.5).

Requests hold no Python objects. The first errno of a batch wins; a file that ends early is ENODATA.
`fastllm.flash.pure` is the same in plain Python. Linux only.
"""
import os
import re

from libc.stdint cimport int32_t, int64_t, uint32_t, uint8_t, uintptr_t
from libc.stdlib cimport calloc, free

from fastllm._ext.linux cimport (
    ECANCELED, EINTR, EINVAL, ENODATA, RWF_DONTCACHE, RWF_NOWAIT, futex_wait, futex_wake,
    getpid, huge_map, in_cache, last_errno, munmap, pread, pread_flags, pthread_join, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, pthread_t, start_thread,
    word_add, word_load, word_set_once,
)

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef enum:
    ALIGN = 4096                    # a multiple of every disk's block size
    EVERYONE = 1 << 30

cdef Py_ssize_t HUGE_BYTES = 2 << 20
cdef bint NOWAIT_IS_QUIET = [int(n) for n in re.findall(r"\d+", os.uname().release)[:2]] < [6, 5]

ctypedef struct Group:
    int32_t pending                 # futex word: requests not finished yet
    int32_t error                   # first errno, 0 = none

ctypedef struct Request:
    int fd                          # buffered descriptor
    int direct_fd                   # O_DIRECT descriptor, or -1
    int64_t offset
    int64_t need                    # bytes that must arrive
    int64_t length                  # `need` rounded up to ALIGN: room at `dst`
    uint8_t *dst
    Group *group

ctypedef struct Queue:
    pthread_mutex_t mutex
    Request *ring
    uint32_t capacity               # a power of two
    uint32_t head, tail             # guarded by the mutex; they run free and wrap
    int32_t ticket                  # futex word: every post changes it
    int32_t idle                    # sleeping threads, a hint for how many to wake
    int32_t stop
    int num_threads
    pthread_t *threads


cdef int read_direct(Request *r, int64_t *got) noexcept nogil:
    """Read the rest past the page cache; 0 or an errno (EINVAL: this descriptor cannot)."""
    cdef int64_t done = got[0] - got[0] % ALIGN
    cdef ssize_t k
    cdef int stalls = 0
    while done < r.need:
        k = pread(r.direct_fd, r.dst + done, r.length - done, r.offset + done)
        if k < 0:
            if last_errno() == EINTR:
                continue
            return last_errno()
        if k == 0:
            return ENODATA
        done += k
        if done < r.need and done % ALIGN:
            # An odd short read: O_DIRECT cannot go on from here, so take the last block again.
            # Three times nothing new means that the file ends inside it.
            done -= done % ALIGN
            stalls = stalls + 1 if k < ALIGN else 0
            if stalls == 3:
                return ENODATA
    return 0


cdef int read_buffered(Request *r, int64_t done, int flags) noexcept nogil:
    """Read the rest through the page cache; 0 or an errno."""
    cdef ssize_t k
    while done < r.need:
        if flags:
            k = pread_flags(r.fd, r.dst + done, r.need - done, r.offset + done, flags)
        else:
            k = pread(r.fd, r.dst + done, r.need - done, r.offset + done)
        if k > 0:
            done += k
        elif k == 0:
            return ENODATA
        elif last_errno() != EINTR:
            if not flags:
                return last_errno()
            flags = 0               # unknown to this kernel or file system: plain reads will tell
    return 0


cdef int read_request(Request *r) noexcept nogil:
    """Take the best road; 0 or an errno."""
    cdef int64_t got = 0
    cdef int error = EINVAL
    if r.direct_fd < 0:
        return read_buffered(r, 0, RWF_DONTCACHE)
    if NOWAIT_IS_QUIET:
        got = max(pread_flags(r.fd, r.dst, r.need, r.offset, RWF_NOWAIT), 0)
    elif in_cache(r.fd, r.offset, r.need) == 1:
        return read_buffered(r, 0, 0)
    if got < r.need:
        error = read_direct(r, &got)
    return read_buffered(r, got, RWF_DONTCACHE) if error == EINVAL else error


cdef void serve(Request *r) noexcept nogil:
    """Do one request and count it.

    Once the count is zero the waiter may free the group; the wake then goes to a stale address,
    which is at worst a spurious wake-up: nothing is read through it.
    """
    cdef Group *group = r.group
    cdef int error = read_request(r)
    if error:
        word_set_once(&group.error, error)
    if word_add(&group.pending, -1) == 0:
        futex_wake(&group.pending, EVERYONE)


cdef void *run_thread(void *arg) noexcept nogil:
    cdef Queue *q = <Queue *>arg
    cdef Request r
    cdef int32_t ticket
    while True:
        ticket = word_load(&q.ticket)           # before looking: a later post changes it
        pthread_mutex_lock(&q.mutex)
        if q.head != q.tail:
            r = q.ring[q.head & (q.capacity - 1)]
            q.head += 1
            pthread_mutex_unlock(&q.mutex)
            serve(&r)
            continue
        pthread_mutex_unlock(&q.mutex)
        if word_load(&q.stop):
            return NULL
        word_add(&q.idle, 1)
        futex_wait(&q.ticket, ticket, 0)
        word_add(&q.idle, -1)


cdef void post(Queue *q, Request *requests, int64_t n) noexcept nogil:
    """Queue what fits and do the rest here.

    A poster must never wait for room: its own requests may be what it would wait for.
    """
    cdef int64_t i, queued = 0
    cdef int32_t sleepers
    if q.num_threads:
        pthread_mutex_lock(&q.mutex)
        while queued < n and q.tail - q.head < q.capacity:
            q.ring[q.tail & (q.capacity - 1)] = requests[queued]
            q.tail += 1
            queued += 1
        pthread_mutex_unlock(&q.mutex)
        word_add(&q.ticket, 1)
        sleepers = word_load(&q.idle)
        if sleepers > 0:
            futex_wake(&q.ticket, <int>queued if queued < sleepers else sleepers)
    for i in range(queued, n):
        serve(&requests[i])


cdef Queue *open_queue(int num_threads, uint32_t capacity) except NULL:
    """Start the threads. Fewer than asked (a pids limit) is fine: without any, posters read."""
    cdef Queue *q = <Queue *>calloc(1, sizeof(Queue))
    if q != NULL:
        q.capacity = capacity
        q.ring = <Request *>calloc(capacity, sizeof(Request))
        q.threads = <pthread_t *>calloc(num_threads, sizeof(pthread_t))
    if q == NULL or q.ring == NULL or q.threads == NULL:
        raise MemoryError("no memory for the reader's queue")
    pthread_mutex_init(&q.mutex, NULL)
    while q.num_threads < num_threads and start_thread(&q.threads[q.num_threads], run_thread, q) == 0:
        q.num_threads += 1
    return q


cdef void close_queue(Queue *q) noexcept nogil:
    """Finish what is queued, stop the threads, free the queue."""
    cdef int i
    word_add(&q.stop, 1)
    word_add(&q.ticket, 1)
    futex_wake(&q.ticket, EVERYONE)
    for i in range(q.num_threads):
        pthread_join(q.threads[i], NULL)
    free(q.ring)
    free(q.threads)
    free(q)


cdef class Batch:
    cdef Group group
    cdef int pid
    cdef object pool                # its threads write through `group`

    def wait(self):
        cdef int32_t pending
        if self.group.pending and self.pid != getpid():
            return ECANCELED        # posted before a fork; the threads stayed with the parent
        while True:
            pending = word_load(&self.group.pending)
            if pending == 0:
                return self.group.error
            with nogil:
                futex_wait(&self.group.pending, pending, 100)
            PyErr_CheckSignals()    # Ctrl-C gets through even if the disk hangs

    def __dealloc__(self):
        cdef int32_t pending = word_load(&self.group.pending)
        if self.pid == getpid():
            with nogil:
                while pending:
                    futex_wait(&self.group.pending, pending, 100)
                    pending = word_load(&self.group.pending)


cdef class Pool:
    cdef Queue *queue
    cdef int pid
    cdef readonly int num_threads

    def __init__(self, int num_threads=8, int capacity=1024):
        if num_threads < 1 or capacity < 1 or capacity & (capacity - 1):
            raise ValueError("num_threads must be positive and capacity a power of two")
        if self.queue != NULL:
            raise ValueError("a Pool is made once")
        self.num_threads = num_threads
        self.queue = open_queue(num_threads, capacity)
        self.pid = getpid()

    def submit(self, int fd, int direct_fd, reads, int64_t request_bytes=1 << 20):
        cdef Batch batch = Batch.__new__(Batch)
        cdef Request *requests
        cdef int64_t offset, nbytes, address, i, n = 0
        if self.queue == NULL:
            raise ValueError("the pool is closed")
        if request_bytes < ALIGN or request_bytes % ALIGN:
            raise ValueError(f"request_bytes must be a positive multiple of {ALIGN}")
        for offset, nbytes, address in reads:
            if offset < 0 or nbytes < 0 or offset > (1LL << 62) - nbytes:
                raise ValueError(f"no file has {nbytes} bytes at offset {offset}")
            if direct_fd >= 0 and (offset | address) % ALIGN:
                raise ValueError(f"offset and address must be multiples of {ALIGN}")
            n += (nbytes + request_bytes - 1) // request_bytes
        requests = <Request *>calloc(n + 1, sizeof(Request))
        if requests == NULL:
            raise MemoryError("no memory for the requests")
        try:
            n = 0
            for offset, nbytes, address in reads:
                for i in range(0, nbytes, request_bytes):
                    requests[n].fd, requests[n].direct_fd = fd, direct_fd
                    requests[n].offset, requests[n].group = offset + i, &batch.group
                    requests[n].dst = <uint8_t *><uintptr_t>(address + i)
                    requests[n].need = min(request_bytes, nbytes - i)
                    requests[n].length = (requests[n].need + ALIGN - 1) // ALIGN * ALIGN
                    n += 1
            if self.pid != getpid():            # forked: the threads stayed with the parent, and a
                self.queue = open_queue(self.num_threads, self.queue.capacity)    # lock may be held
                self.pid = getpid()
            batch.pool, batch.pid, batch.group.pending = self, self.pid, <int32_t>n
            with nogil:
                post(self.queue, requests, n)
        finally:
            free(requests)
        return batch

    def close(self):
        cdef Queue *q = self.queue
        self.queue = NULL
        if q != NULL and self.pid == getpid():
            with nogil:
                close_queue(q)

    def __dealloc__(self):
        self.close()


def huge_alloc(Py_ssize_t nbytes, bint touch=False):
    cdef Py_ssize_t size = max((nbytes + HUGE_BYTES - 1) // HUGE_BYTES, 1) * HUGE_BYTES
    cdef void *p = NULL
    if nbytes < 0:
        raise ValueError("nbytes must not be negative")
    if nbytes <= (1LL << 62):
        with nogil:
            p = huge_map(size, touch)
    if p == NULL:
        raise MemoryError(f"cannot map {nbytes} bytes")
    return <uintptr_t>p


def huge_free(uintptr_t address, Py_ssize_t nbytes):
    cdef Py_ssize_t size = max((nbytes + HUGE_BYTES - 1) // HUGE_BYTES, 1) * HUGE_BYTES
    with nogil:
        munmap(<void *>address, size)
