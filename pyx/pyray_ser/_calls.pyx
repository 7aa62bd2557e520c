"""Tracks the calls in progress on the pipe to one worker process, and owns the file descriptors that they need.

Python runs signal handlers and finalizers between any two steps of Python code, in the thread that they interrupt. If
the interrupted code holds a lock that the handler needs, the thread waits for itself forever. So the state of a pipe
has no lock: each method here is one uninterruptible step. While the state is incomplete, a method keeps the GIL, runs
no Python code and allocates nothing that the garbage collector tracks. Reading and writing never block. Only `wait`
lets other code run, and only while the state is complete.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.string cimport memmove, strerror

from collections import deque

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN, POLLOUT, POLLHUP, POLLERR
    int c_poll "poll"(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<fcntl.h>" nogil:
    int F_DUPFD_CLOEXEC
    int c_fcntl "fcntl"(int fd, int command, ...)

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL
    int socketpair(int domain, int type, int protocol, int *ends)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)


# Flags in the result of `Calls.wait`: the pipe is readable, the process has ended.
READABLE = 1
ENDED = 2

cdef enum:
    # A socket accepts this many bytes without blocking, including a margin for the 800 bytes or so that the kernel adds
    # per message.
    WINDOW_BYTES = 64 * 1024
    WINDOW_CALLS = 100
    FIRST_ROOM = 40 * 1024
    # Frames contain at most 32 KiB of a value, so a longer frame is corrupt.
    LONGEST = 64 << 20

# All file descriptors owned by this module's objects, for `close_inherited`.
cdef dict _open = {}
# The number of forks; an object that was created before a fork owns nothing in the child.
cdef unsigned long _generation = 0


def close_inherited(keep):
    """
    Close the descriptors that the parent's objects own; call this in a child process right after the fork.

    Parameters
    ----------
    keep : container of int
        Descriptors that were passed to the child.
    """
    global _generation
    _generation += 1
    for fd in _open:
        if fd not in keep:
            c_close(fd)
    _open.clear()


cdef class Descriptor:
    """
    The owner of a file descriptor, which closes the descriptor exactly once, and never in a forked child.

    Parameters
    ----------
    fd : int
        A descriptor that has no other owner; -1 for none. A descriptor of 0 to 2 is moved above 2, see `_descriptors`.
    """

    cdef int fd
    cdef unsigned long generation

    def __init__(self, int fd=-1):
        self.own(fd)

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        self.let_go()

    cdef int own(self, int fd) except -1:
        cdef int low = fd, failed
        self.let_go()
        self.generation = _generation
        if 0 <= low <= 2:
            fd = c_fcntl(low, F_DUPFD_CLOEXEC, 3)
            failed = errno
            c_close(low)
            if fd < 0:
                raise OSError(failed, f"a descriptor could not be moved above 2: {strerror(failed).decode()}")
        if fd >= 0:
            self.fd = fd
            _open[fd] = None
        return 0

    cdef void let_go(self) noexcept:
        cdef int fd = self.fd
        self.fd = -1
        if fd < 0 or self.generation != _generation:
            return
        try:
            _open.pop(fd, None)
        except BaseException:
            # Out of memory: the descriptor stays in `_open`, so a forked child may close an unrelated descriptor with
            # the same number.
            pass
        c_close(fd)

    def fileno(self):
        """Return the descriptor, or -1 if it is closed or if this is a forked child."""
        return self.fd if self.generation == _generation else -1

    def close(self):
        """Close the descriptor, if it is open."""
        self.let_go()

    cdef int give(self) except -1:
        """Release ownership and return the descriptor."""
        cdef int fd = self.fd if self.generation == _generation else -1
        if fd >= 0:
            _open.pop(fd, None)
        self.fd = -1
        return fd if fd >= 0 else -2


@cython.final
@cython.freelist(64)
cdef class Job:
    """
    A call that has not been answered yet.

    Attributes
    ----------
    ref : TaskRef
    frame, before : bytes
        The frame of the call, and a frame that must be sent before it.
    number : int
    held : object
        Keeps the objects that the arguments refer to alive until the worker has replied; by then the worker holds them
        itself.
    items : collections.deque or None
        Outcomes received so far, for a call with several results.
    ended : bool
        Whether all items have been received.
    stream : object or None
        An object whose ``notice()`` must be called after a change of `items` or `ended`.
    worker, function, retries
        Used by the pool.
    """

    cdef public object ref, held, items, stream, worker, function
    cdef public bytes frame, before
    cdef public object number
    cdef public bint ended
    cdef public int retries

    def __init__(self, ref, bytes frame, number, held):
        self.ref = ref
        self.frame = frame
        self.before = b""
        self.number = number
        self.held = held


cdef class Turn:
    """The right to read a pipe, which ends with `end` or when this object is freed."""

    cdef Calls calls

    def end(self):
        """Release the right to read."""
        cdef Calls calls = self.calls
        self.calls = None
        if calls is not None:
            calls.reader = 0

    def __dealloc__(self):
        if self.calls is not None:
            self.calls.reader = 0


@cython.final
cdef class Calls(Descriptor):
    """
    The calls on one pipe, in the order in which they were submitted.

    Parameters
    ----------
    pipe : Descriptor, optional
        A connected socket, which this object takes over. Without one, calls are queued until `attach`.
    """

    # number -> Job that was sent but not answered yet
    cdef readonly dict sent
    # Jobs that are not sent yet
    cdef readonly object queued
    # arrival number -> frame that has not been processed yet
    cdef dict frames
    cdef long long first, next
    cdef Py_ssize_t sent_bytes
    # Whether the pipe has ended, or does not exist yet.
    cdef readonly bint dead
    # Whether no more calls are accepted.
    cdef readonly bint closed
    # Thread that reads.
    cdef readonly unsigned long reader
    # Bytes that are not written yet, from `written` on.
    cdef bytearray backlog
    cdef Py_ssize_t written
    cdef uint8_t *room
    cdef Py_ssize_t have, size
    cdef readonly bint at_end

    def __cinit__(self):
        self.sent, self.queued, self.frames, self.backlog = {}, deque(), {}, bytearray()

    def __init__(self, Descriptor pipe=None):
        self.dead = pipe is None
        if pipe is not None:
            self.own(pipe.give())

    def __dealloc__(self):
        PyMem_Free(self.room)

    # ---- writing

    def submit(self, Job job not None):
        """
        Send a call, or queue it after earlier calls.

        Returns
        -------
        bool
            False if no more calls are accepted.
        """
        if self.closed:
            return False
        self.queued.append(job)
        self.flush()
        return True

    def submit_first(self, waiting, call, Job job not None):
        """
        Remove `call` from the front of a deque and send its job, in one step.

        Returns
        -------
        bool or None
            None if a different call is now in front; otherwise as `submit`.
        """
        if not take_first(waiting, call):
            return None
        return self.submit(job)

    def send(self, bytes frame not None):
        """Send a frame that needs no reply; discard it if the process has ended."""
        if not self.dead:
            self.put(frame)

    cdef int flush(self) except -1:
        cdef Job job
        cdef Py_ssize_t length
        while self.queued and not self.dead:
            job = self.queued[0]
            length = PyBytes_GET_SIZE(job.frame)
            if self.sent and (self.sent_bytes + length > WINDOW_BYTES or len(self.sent) >= WINDOW_CALLS):
                break
            self.sent[job.number] = job
            self.queued.popleft()
            self.sent_bytes += length
            if job.before:
                self.put(job.before)
            self.put(job.frame)
        return 0

    cdef int put(self, bytes frame) except -1:
        cdef Py_ssize_t length = PyBytes_GET_SIZE(frame)
        cdef uint8_t head[4]
        head[0], head[1], head[2], head[3] = length >> 24, length >> 16 & 255, length >> 8 & 255, length & 255
        self.backlog += PyBytes_FromStringAndSize(<char *>head, 4)
        self.backlog += frame
        self.write()
        return 0

    cdef int write(self) except -1:
        cdef char *data = self.backlog
        cdef Py_ssize_t length = len(self.backlog), done
        while self.written < length:
            done = send(self.fd, data + self.written, length - self.written, MSG_DONTWAIT | MSG_NOSIGNAL)
            if done >= 0:
                self.written += done
            elif errno == EAGAIN:
                return 0
            elif errno != EINTR:
                break  # the pipe has ended: the reader detects this and processes the frames received before
        self.backlog.clear()
        self.written = 0
        return 0

    @property
    def blocked(self):
        """bool : Whether some bytes could not be written yet; `wait` and `resume` write them."""
        return len(self.backlog) > 0

    def resume(self):
        """Write the bytes that could not be written before."""
        if not self.dead:
            self.write()

    # ---- reading

    def turn(self, unsigned long thread):
        """Return the right to read, or None if another thread already has it."""
        cdef Turn turn = Turn.__new__(Turn)
        if self.reader:
            return None
        self.reader = thread
        turn.calls = self
        return turn

    def wait(self, int watch, int patience):
        """
        Wait until the pipe is ready or the process has ended.

        Parameters
        ----------
        watch : int
            A descriptor that becomes readable when the process ends.
        patience : int
            Timeout in milliseconds.

        Returns
        -------
        int
            The sum of READABLE and ENDED, as far as they apply. 0 means a timeout, or that a signal handler ran.
        """
        cdef pollfd[2] fds
        cdef int found, failed
        fds[0].fd, fds[0].events, fds[0].revents = self.fd, POLLIN, 0
        if len(self.backlog):
            fds[0].events |= POLLOUT
        fds[1].fd, fds[1].events, fds[1].revents = watch, POLLIN, 0
        with nogil:
            found = c_poll(fds, 2, patience)
            failed = errno
        if found < 0:
            if failed == EINTR:
                PyErr_CheckSignals()
            return 0
        if fds[0].revents & POLLOUT:
            self.resume()
        return (1 if fds[0].revents & (POLLIN | POLLHUP | POLLERR) else 0) | (2 if fds[1].revents else 0)

    def receive(self):
        """
        Read the bytes that have arrived.

        Returns
        -------
        bool
            False if no bytes were read, because the pipe is empty or, if `at_end` is true, because it has ended.
        """
        cdef ssize_t got
        if self.dead:
            return False
        if self.room is NULL or self.size - self.have < 4096:
            self.grow(max(<Py_ssize_t>FIRST_ROOM, self.have + 4096))
        while True:
            got = recv(self.fd, self.room + self.have, self.size - self.have, MSG_DONTWAIT)
            if got > 0:
                self.have += got
                self.cut()
                return True
            if got < 0 and errno == EINTR:
                continue
            self.at_end = got == 0 or errno != EAGAIN
            return False

    cdef int grow(self, Py_ssize_t size) except -1:
        cdef void *room
        if size <= self.size:
            return 0
        room = PyMem_Realloc(self.room, size)
        if room is NULL:
            raise MemoryError
        self.room = <uint8_t *>room
        self.size = size
        return 0

    cdef int cut(self) except -1:
        """Split the received bytes into frames."""
        cdef Py_ssize_t at = 0, length
        cdef uint8_t *data
        try:
            while self.have - at >= 4:
                data = self.room + at
                length = <Py_ssize_t>data[0] << 24 | <Py_ssize_t>data[1] << 16 | <Py_ssize_t>data[2] << 8 | data[3]
                if length > LONGEST:
                    self.at_end = True
                    break
                if self.have - at < 4 + length:
                    self.grow(4 + length)
                    break
                self.frames[self.next] = PyBytes_FromStringAndSize(<char *>self.room + at + 4, length)
                self.next += 1
                at += 4 + length
        finally:
            self.have -= at
            memmove(self.room, self.room + at, self.have)
        return 0

    def frame(self):
        """
        Return the arrival number and the bytes of the oldest unprocessed frame, or None if there is none.

        The frame remains the oldest until `took` or `finish` is called for it. Until then `oldest` returns the same
        frame to other callers too, such as a signal handler, but only the first `took` or `finish` has an effect.
        """
        while self.first < self.next:
            found = self.frames.get(self.first)
            if found is not None:
                return self.first, found
            self.first += 1
        return None

    def took(self, arrival, Job job, outcome, bytes reply):
        """
        Process a frame that is not the last of its call.

        Parameters
        ----------
        arrival : int
        job : Job or None
            Receives the item.
        outcome : object
        reply : bytes or None
            A frame to send.
        """
        if arrival not in self.frames:
            return
        if job is not None and job.items is not None:
            job.items.append(outcome)
        found = self.frames.pop(arrival)
        if reply is not None:
            self.send(reply)

    def finish(self, arrival, Job job, outcome, bytes reply):
        """
        Process the last frame of a call. The parameters are those of `took`, but there is no item if `outcome` is None.
        """
        if arrival not in self.frames:
            return
        if job is not None:
            if job.items is not None and outcome is not None and not job.ended:
                job.items.append(outcome)
            job.ended = True
            if self.sent.pop(job.number, None) is not None:
                self.sent_bytes -= PyBytes_GET_SIZE(job.frame)
        found = self.frames.pop(arrival)
        if reply is not None:
            self.send(reply)
        self.flush()

    # ---- cancelling, and the end

    def withdraw(self, Job job not None, bytes otherwise):
        """Remove a call that was not sent, and return True; otherwise send `otherwise` and return False."""
        if job in self.queued:
            self.queued.remove(job)
            return True
        if job.number in self.sent:
            self.send(otherwise)
        return False

    @property
    def busy(self):
        """bool : Whether calls are in progress."""
        return len(self.sent) > 0 or len(self.queued) > 0

    @property
    def pending(self):
        """bool : Whether there are unprocessed frames."""
        return len(self.frames) > 0

    def lose(self):
        """Close the pipe, which has ended. Later calls are queued until `attach` or `refuse`."""
        self.dead = True
        self.let_go()
        self.frames.clear()
        self.backlog.clear()
        self.have = self.written = 0

    def attach(self, Descriptor pipe not None, again):
        """
        Continue with a new pipe.

        Parameters
        ----------
        pipe : Descriptor
            A connected socket, which this object takes over.
        again : list of Job
            These jobs are sent before the queued ones. All other calls that were sent but not answered are discarded.

        Returns
        -------
        bool
            False if no more calls are accepted.
        """
        cdef Py_ssize_t i
        if self.closed:
            return False
        self.sent.clear()
        self.sent_bytes = 0
        for i in range(len(again) - 1, -1, -1):
            self.queued.appendleft(again[i])
        self.own(pipe.give())
        self.dead = self.at_end = False
        self.flush()
        return True

    def refuse(self):
        """Close the pipe and accept no more calls. `oldest` still returns unanswered calls."""
        self.closed = True
        self.lose()

    def oldest(self):
        """Return the oldest unanswered call, or None."""
        for job in self.sent.values():
            return job
        return self.queued[0] if self.queued else None

    def forget(self, Job job not None, outcome):
        """Remove a call that will not be answered; `outcome` becomes its last item if it has several results."""
        if self.sent.pop(job.number, None) is None:
            if not take_first(self.queued, job):
                return
        if job.items is not None and not job.ended:
            job.items.append(outcome)
        job.ended = True

    def drop(self):
        """Discard all calls."""
        self.sent.clear()
        self.queued.clear()
        self.sent_bytes = 0

    def close_if_idle(self):
        """If no calls are in progress, close the pipe and accept no more calls. Return whether the pipe was closed."""
        if self.closed or self.sent or self.queued:
            return False
        self.refuse()
        return True


def take_first(waiting, call):
    """Remove `call` from the front of a deque and return True; return False if it is not in front."""
    if not waiting or waiting[0] is not call:
        return False
    waiting.popleft()
    return True


def pipe():
    """
    Return a new pair of connected sockets.

    Returns
    -------
    tuple of (Descriptor, Descriptor)
    """
    cdef int[2] ends
    cdef Descriptor ours = Descriptor.__new__(Descriptor), theirs = Descriptor.__new__(Descriptor)
    if socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0:
        raise OSError(errno, f"no pipe to a worker process could be made: {strerror(errno).decode()}")
    try:
        ours.own(ends[0])
    except BaseException:
        c_close(ends[1])
        raise
    theirs.own(ends[1])
    return ours, theirs
