"""Shared memory for Python: owns segments, and the leases on parts of them.

Thin over ``csrc/shm``. Any thread may use any object. Knows nothing of servers: who registers what,
and when a slot may be used again, is decided above.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_STRIDES,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memmove
from libcpp.optional cimport optional
from libcpp.string cimport string
from libcpp.vector cimport vector

import errno
import os

from triton_fast._core cimport shm
from triton_fast.errors import ClosedError, InvalidTensor, SharedMemoryError

# Below this many bytes, letting other threads run costs more than the copy does.
cdef size_t NOGIL_SIZE = 65536
cdef char* BYTE_FORMAT = b"B"

# Objects alive that stand for memory, for the tests' ledger. Touched with the GIL held.
cdef Py_ssize_t live_segments = 0
cdef Py_ssize_t live_leases = 0


def live_counts():
    """Return how many segments and leases exist."""
    return {"segments": live_segments, "leases": live_leases}


def make_private(pages):
    """Put memory of this process alone in place of shared pages, with what is in them now.

    For a forked child, whose arrays are on them.

    Parameters
    ----------
    pages : iterable of (int, int)
        Address and byte_size of each, as of `Arenas.leased_pages`.

    Raises
    ------
    SharedMemoryError
        ``errno.ENOMEM`` if there is not as much memory.
    """
    for address, byte_size in pages:
        shm.make_private(address, byte_size)


# None of these classes takes part in a cycle: what they refer to is of each other, one way, and
# bytes.
@cython.final
@cython.no_gc
cdef class Segment:
    """POSIX shared memory, mapped: writable bytes through the buffer protocol.

    `create` and `attach` make them.

    Notes
    -----
    The memory stays mapped while the object lives, and every array on it keeps it alive. A segment
    that was created is unlinked by `unlink`, by `close` and when it dies, whichever is first. A
    forked child inherits the mapping, and may read and write it; it never unlinks.
    """

    cdef shm.Segment segment
    cdef readonly Py_ssize_t exports
    """How many buffers and leases there are on it."""
    cdef bint closed
    cdef bint added

    def __cinit__(self):
        global live_segments
        live_segments += 1

    def __dealloc__(self):
        global live_segments
        live_segments -= 1

    def __init__(self):
        raise TypeError("segments are made by Segment.create() and Segment.attach()")

    @staticmethod
    def create(size_t byte_size):
        """Create a segment under a name that nobody can guess, with mode 0600.

        Parameters
        ----------
        byte_size : int, bytes
            At least 1. All of it is allocated now: writing to it later cannot fail.

        Returns
        -------
        Segment
            Of zeros.

        Raises
        ------
        SharedMemoryError
            ``errno.ENOSPC`` if ``/dev/shm`` has no room for it, ``ENOMEM`` if the machine has no
            memory for it; nothing is left behind.
        """
        cdef Segment segment = Segment.__new__(Segment)
        with nogil:
            segment.segment = shm.move(shm.Segment.create(byte_size))
        return segment

    @staticmethod
    def attach(str key, size_t byte_size, size_t offset=0):
        """Map a part of a segment that somebody else created.

        Parameters
        ----------
        key : str
            Its name, with the slash at the front.
        byte_size : int, bytes
            Of the part, at least 1.
        offset : int, bytes
            Where the part begins; a multiple of the page size.

        Raises
        ------
        SharedMemoryError
            If there is none of the name (``errno.ENOENT``), it is another user's (``EACCES``), or
            it is shorter (``EINVAL``).
        """
        cdef Segment segment = Segment.__new__(Segment)
        cdef string name = os.fsencode(key)
        with nogil:
            segment.segment = shm.move(shm.Segment.attach(name, byte_size, offset))
        return segment

    @property
    def key(self):
        """The name, as a server is told it."""
        return os.fsdecode(self.segment.name())

    @property
    def byte_size(self):
        """Length of the mapping."""
        return self.segment.size()

    @property
    def address(self):
        """Where the mapping begins; valid while the object lives."""
        return <uintptr_t>self.segment.data()

    @property
    def inherited(self):
        """Whether this is a copy, in a forked child, of the parent's."""
        return self.segment.inherited()

    def unlink(self):
        """Take the name away, so that no file is left; who has mapped it keeps it. Idempotent.

        Raises
        ------
        SharedMemoryError
            If it was attached to (``errno.EPERM``): its name belongs to who created it.
        """
        self.segment.unlink()

    def close(self):
        """Unlink it, if it was created here, and give out no further buffers. Idempotent.

        The memory itself goes back with the object: an array may be on it that nobody can see, as
        ``numpy.ndarray(buffer=...)`` keeps no buffer.

        Raises
        ------
        SharedMemoryError
            While arrays or leases are alive on it (``errno.EBUSY``); it says how many.
        """
        if self.exports:
            raise SharedMemoryError(
                errno.EBUSY,
                f"shared memory {self.key!r} cannot be closed: {self.exports} "
                f"{'array is' if self.exports == 1 else 'arrays are'} alive on it")
        if not self.closed and self.segment.created():
            self.segment.unlink()
        self.closed = True

    def __len__(self):
        return <Py_ssize_t>self.segment.size()

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.closed:
            raise ClosedError("the segment is closed")
        fill(view, self, self.segment.data(), self.segment.size(), flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.exports -= 1


cdef void fill(Py_buffer* view, object owner, void* memory, size_t size, int flags) noexcept:
    view.obj = owner
    view.buf = memory
    view.len = <Py_ssize_t>size
    view.itemsize = 1
    view.readonly = 0
    view.ndim = 1
    view.format = BYTE_FORMAT if flags & PyBUF_FORMAT else <char*>NULL
    # One dimension of bytes: its extent and its stride are fields that the view has anyway.
    view.shape = &view.len if flags & PyBUF_ND else <Py_ssize_t*>NULL
    view.strides = (
        &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else <Py_ssize_t*>NULL)
    view.suboffsets = NULL
    view.internal = NULL


@cython.final
@cython.no_gc
cdef class Arenas:
    """Segments that slots are cut from, each under a number.

    Notes
    -----
    Keeps each segment until `remove`; leases keep theirs longer. In a forked child, where it is the
    parent's (`inherited`), `find` knows nothing and the rest raises `ClosedError`.
    """

    cdef object __weakref__
    cdef shm.Arenas* arenas
    cdef dict segments

    def __cinit__(self):
        self.arenas = new shm.Arenas()
        self.segments = {}

    def __dealloc__(self):
        if self.arenas is not NULL:
            shm.dispose(self.arenas)

    cdef int check_own(self) except -1:
        if self.arenas.inherited():
            raise ClosedError("this shared memory belongs to the parent process")
        return 0

    def add(self, Segment segment not None):
        """Take slots from a segment too.

        Parameters
        ----------
        segment : Segment
            Kept. Whatever else is in it may be overwritten; it can be added once in its life.

        Returns
        -------
        int
            The arena's number, never used for another one.
        """
        cdef uint32_t arena
        self.check_own()
        if segment.added or segment.closed:
            raise ValueError("the segment was added before, or closed")
        arena = self.arenas.add(<uintptr_t>segment.segment.data(), segment.segment.size())
        segment.added = True
        self.segments[arena] = segment
        return arena

    def take(self, size_t byte_size):
        """Lease a slot: the smallest free piece that is large enough, at the lowest place.

        Parameters
        ----------
        byte_size : int, bytes
            What the lease's buffer shall have; the slot is rounded up, to whole pages from 4 KiB
            on, and aligned alike.

        Returns
        -------
        Lease or None
            None if no arena that is not retired has such a piece.
        """
        cdef optional[shm.Slot] taken
        cdef Lease lease
        self.check_own()
        taken = self.arenas.take(byte_size)
        if not taken.has_value():
            return None
        lease = Lease.__new__(Lease)
        lease.slot = taken.value()
        lease.size = byte_size
        lease.arenas = self  # from here on the slot goes back with the lease
        lease.segment = <Segment>self.segments[lease.slot.arena]
        lease.segment.exports += 1
        return lease

    def find(self, uintptr_t address, size_t byte_size):
        """Say which slot a piece of memory is in.

        Parameters
        ----------
        address, byte_size : int
            The memory. Somebody keeps it alive meanwhile.

        Returns
        -------
        (int, int) or None
            Number of the arena, retired ones too, and offset from its beginning; None unless all of
            it lies in one slot whose lease is alive.
        """
        cdef optional[shm.Place] place = self.arenas.find(address, byte_size)
        if not place.has_value():
            return None
        return place.value().arena, place.value().offset

    def quarantine(self, uint32_t arena, size_t offset):
        """Have the slot at an offset, as of `find`, never be handed out again.

        Arrays on it stay valid. It counts as quarantined, and no longer as leased, from now on.

        Raises
        ------
        KeyError
            If there is no slot.
        """
        cdef shm.Place place
        self.check_own()
        place.arena = arena
        place.offset = offset
        if not self.arenas.quarantine(place):
            raise KeyError((arena, offset))

    def retire(self, uint32_t arena):
        """Take no further slots from an arena; those that are out may come back. Idempotent.

        Raises
        ------
        KeyError
            If there is no such arena.
        """
        self.check_own()
        if not self.arenas.retire(arena):
            raise KeyError(arena)

    def idle(self, uint32_t arena):
        """Say whether no slot of an arena is leased; quarantined ones do not count."""
        self.check_own()
        return self.arenas.idle(arena)

    def remove(self, uint32_t arena):
        """Forget an idle arena, quarantined slots and all, and let go of its segment.

        Raises
        ------
        SharedMemoryError
            If slots are leased (``errno.EBUSY``).
        KeyError
            If there is no such arena.
        """
        self.check_own()
        if not self.arenas.remove(arena):
            if arena not in self.segments:
                raise KeyError(arena)
            raise SharedMemoryError(errno.EBUSY, f"slots of arena {arena} are leased")
        del self.segments[arena]

    def leased_pages(self):
        """Return the pages on which there is a lease, as (address, byte_size); neighbours as one.

        Returns
        -------
        list or None
            In a forked child None if another thread of the parent's was changing what there is.
        """
        cdef optional[vector[shm.Pages]] found = self.arenas.leased_pages(
            not self.arenas.inherited())
        cdef vector[shm.Pages] pages
        cdef size_t i
        if not found.has_value():
            return None
        pages = found.value()
        return [(pages[i].address, pages[i].size) for i in range(pages.size())]

    @property
    def generation(self):
        """Another number if there may be more to take: a slot came back, an arena came or went."""
        self.check_own()
        return self.arenas.generation()

    def wait(self, uint64_t generation, deadline_ns):
        """Wait until `generation` is another one, without the GIL.

        Parameters
        ----------
        generation : int
            As it was before the last attempt to take a slot.
        deadline_ns : int or None
            Nanoseconds of ``time.monotonic_ns()``; None waits forever.

        Returns
        -------
        bool
            False if the deadline came first.

        Raises
        ------
        BaseException
            What a signal handler raises, KeyboardInterrupt say.
        """
        cdef int64_t until = INT64_MAX if deadline_ns is None else deadline_ns
        cdef shm.Waited waited
        self.check_own()
        while True:
            with nogil:
                waited = self.arenas.wait_for_release(generation, until)
            if waited != shm.Waited.kInterrupted:
                return waited == shm.Waited.kReleased
            PyErr_CheckSignals()

    @property
    def inherited(self):
        """Whether this is a copy, in a forked child, of the parent's."""
        return self.arenas.inherited()

    def figures(self, arena=None):
        """Return how much there is and how much of it is in use, of one arena or of all.

        Returns
        -------
        dict of str to int
            ``byte_size``; ``leased`` and ``quarantined``, in slots; ``leased_bytes`` and
            ``quarantined_bytes``, as the slots were rounded up.

        Raises
        ------
        KeyError
            If there is no such arena.
        """
        cdef optional[shm.Figures] figures
        self.check_own()
        if arena is None:
            figures = self.arenas.figures()
        else:
            figures = self.arenas.figures(<uint32_t>arena)
        if not figures.has_value():
            raise KeyError(arena)
        return {
            "byte_size": figures.value().byte_size,
            "leased": figures.value().leased,
            "leased_bytes": figures.value().leased_bytes,
            "quarantined": figures.value().quarantined,
            "quarantined_bytes": figures.value().quarantined_bytes,
        }


@cython.final
@cython.no_gc
cdef class Lease:
    """A slot and the right to it: writable bytes by the buffer protocol, as many as asked for.

    Notes
    -----
    Arrays on it keep it alive. The slot goes back when it dies, on whatever thread.
    """

    cdef shm.Slot slot
    cdef size_t size
    cdef Arenas arenas
    cdef readonly Segment segment
    """Keeps the memory mapped."""

    def __cinit__(self):
        global live_leases
        live_leases += 1

    def __dealloc__(self):
        global live_leases
        live_leases -= 1
        if self.arenas is not None:
            self.arenas.arenas.give(self.slot)
        if self.segment is not None:
            self.segment.exports -= 1

    def __init__(self):
        raise TypeError("leases are made by Arenas.take()")

    @property
    def arena(self):
        """Number of the arena."""
        return self.slot.arena

    @property
    def offset(self):
        """From the arena's beginning, in bytes."""
        return self.slot.offset

    @property
    def byte_size(self):
        """Length of the buffer, as it was asked for."""
        return self.size

    @property
    def capacity(self):
        """Length of the slot in bytes, `byte_size` rounded up."""
        return self.slot.capacity

    @property
    def address(self):
        """Where the slot begins; valid while the lease lives."""
        return <uintptr_t>self.memory()

    def quarantine(self):
        """Have the slot never be handed out again; see `Arenas.quarantine`. Idempotent."""
        cdef shm.Place place
        self.arenas.check_own()
        place.arena = self.slot.arena
        place.offset = self.slot.offset
        self.arenas.arenas.quarantine(place)

    def copy_from(self, payload):
        """Fill the buffer, without the GIL if it is large.

        Parameters
        ----------
        payload : buffer, C-contiguous
            Of exactly `byte_size` bytes. Borrowed during the call.

        Raises
        ------
        InvalidTensor
            If it has another length.
        """
        cdef Py_buffer view
        # Never FORMAT: numpy cannot describe every dtype that has plain bytes (bfloat16).
        PyObject_GetBuffer(payload, &view, PyBUF_C_CONTIGUOUS)
        try:
            if <size_t>view.len != self.size:
                raise InvalidTensor(f"{view.len} bytes do not fill a slot of {self.size}")
            # Plain: stores past the caches made the reader slower, and nothing faster (2026-11).
            if self.size < NOGIL_SIZE:
                memmove(self.memory(), view.buf, self.size)
            else:
                with nogil:
                    memmove(self.memory(), view.buf, self.size)
        finally:
            PyBuffer_Release(&view)

    cdef void* memory(self) noexcept nogil:
        return self.segment.segment.data() + self.slot.offset

    def __len__(self):
        return <Py_ssize_t>self.size

    def __getbuffer__(self, Py_buffer* view, int flags):
        fill(view, self, self.memory(), self.size, flags)
