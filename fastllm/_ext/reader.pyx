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


# Numba's native convention: int32 f(int64 *result, void **exception, int64 words, int64 bytes)
ctypedef int32_t (*function_t)(int64_t *, void **, int64_t, int64_t) noexcept nogil

cdef enum:
    FD, DIRECT_FD, OFFSET, NBYTES, WORDS    # of a job; the function's own words begin at WORDS

ctypedef struct Line:               # what the threads of a Feeder share
    function_t function
    int64_t *jobs
    int64_t stride                  # int64 of a job
    uint8_t *slots
    int64_t slot_bytes
    int32_t num_jobs
    int32_t next                    # job to be taken
    int32_t done
    int32_t seats                   # threads that have taken a slot
    int32_t working                 # futex word: threads that have not ended
    int32_t stop
    int32_t error                   # errno of the first read that failed, 0 = none
    int32_t failed                  # its job
    int num_threads
    pthread_t *threads


cdef void feed(Line *line, uint8_t *slot) noexcept nogil:
    """Take jobs until there are no more: read into the slot, call the function on what is there."""
    cdef int64_t result, before
    cdef void *exception
    cdef int64_t *job
    cdef Request r
    cdef int32_t i, error
    while not word_load(&line.stop):
        i = word_add(&line.next, 1) - 1
        if i >= line.num_jobs:
            return
        job = line.jobs + i * line.stride
        before = job[OFFSET] % ALIGN
        r.fd, r.direct_fd, r.dst = <int>job[FD], <int>job[DIRECT_FD], slot
        r.offset, r.need = job[OFFSET] - before, job[NBYTES] + before
        r.length = (r.need + ALIGN - 1) // ALIGN * ALIGN
        error = read_request(&r) if job[NBYTES] else 0
        if error:
            if word_set_once(&line.error, error):
                line.failed = i
            word_add(&line.stop, 1)
            return
        line.function(&result, &exception, <int64_t><uintptr_t>(job + WORDS),
                      <int64_t><uintptr_t>(slot + before))
        word_add(&line.done, 1)


cdef void *run_line(void *arg) noexcept nogil:
    cdef Line *line = <Line *>arg
    feed(line, line.slots + (word_add(&line.seats, 1) - 1) * line.slot_bytes)
    if word_add(&line.working, -1) == 0:
        futex_wake(&line.working, EVERYONE)
    return NULL


cdef class Feeder:
    cdef Line line
    cdef int pid
    cdef object memory              # what the threads read and write

    def __init__(self, uintptr_t function, jobs, uintptr_t slots, int64_t slot_bytes, int num_threads,
                 memory=None):
        cdef Line *line = &self.line
        cdef int64_t *job
        cdef int32_t i
        if self.memory is not None:
            raise ValueError("a Feeder is made once")
        if num_threads < 1 or slot_bytes < 0 or (slots | <uintptr_t>slot_bytes) % ALIGN:
            raise ValueError(f"num_threads must be positive, slots and their size multiples of {ALIGN}")
        if jobs.dtype != "int64" or jobs.ndim != 2 or jobs.shape[1] < WORDS or not jobs.flags.c_contiguous:
            raise ValueError(f"jobs must be rows of at least {WORDS} int64")
        line.function = <function_t><void *>function
        line.jobs = <int64_t *><uintptr_t>jobs.ctypes.data
        line.num_jobs, line.stride = jobs.shape
        line.slots, line.slot_bytes = <uint8_t *><void *>slots, slot_bytes
        for i in range(line.num_jobs):
            job = line.jobs + i * line.stride
            if not 0 <= job[OFFSET] <= (1LL << 62) or not 0 <= job[NBYTES] <= slot_bytes - job[OFFSET] % ALIGN:
                raise ValueError(f"{job[NBYTES]} bytes at {job[OFFSET]}: a slot has {slot_bytes}")
        line.threads = <pthread_t *>calloc(num_threads, sizeof(pthread_t))
        if line.threads == NULL:
            raise MemoryError("no memory for the threads")
        self.memory, self.pid = (jobs, memory), getpid()
        line.working = num_threads
        while line.num_threads < num_threads and start_thread(
            &line.threads[line.num_threads], run_line, line
        ) == 0:
            line.num_threads += 1
        # Fewer is fine (a pids limit); without any, whoever waits does the jobs.
        word_add(&line.working, line.num_threads - num_threads)

    def wait(self):
        cdef Line *line = &self.line
        cdef int32_t working = word_load(&line.working)
        if working == 0 or line.num_jobs == 0:  # where no thread could be started, all is left
            with nogil:
                feed(line, line.slots)
            return True
        if self.pid != getpid():    # forked: the threads stayed with the parent
            if word_set_once(&line.error, ECANCELED):
                line.failed = min(word_load(&line.next), line.num_jobs - 1)
            return True
        with nogil:
            futex_wait(&line.working, working, 100)
        PyErr_CheckSignals()        # Ctrl-C gets through even if the disk hangs
        return word_load(&line.working) == 0

    @property
    def done(self):
        return word_load(&self.line.done)

    @property
    def failure(self):
        cdef int32_t error = word_load(&self.line.error)
        return (self.line.failed, error) if error else None

    def close(self):
        cdef Line *line = &self.line
        cdef int i
        word_add(&line.stop, 1)
        if self.pid == getpid():
            with nogil:
                for i in range(line.num_threads):
                    pthread_join(line.threads[i], NULL)
        free(line.threads)
        line.threads, line.num_threads, line.num_jobs = NULL, 0, 0
        self.memory = ()

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
