"""Memory that native calls borrow: owns the live buffers, and how a channel in C++ comes by them.

`Gather`, `Landing` and `StreamLanding` are the fast, optional part of the contract in
`triton_fast.channels.base`: a channel in C++ sends a message from where its pieces lie, and has
those that it receives parsed as they arrive, without a Python call. A codec's classes are derived
from them; a channel knows no other of their names.
"""

from cpython.buffer cimport PyBuffer_Release, PyObject_GetBuffer
from libcpp.vector cimport vector

from triton_fast._core.bridge cimport MessageSink
from triton_fast._core.wire cimport ConstBuffer

# Buffers that are held, for the tests' ledger. Touched with the GIL held.
cdef Py_ssize_t live_holds = 0


def held_buffers():
    """Return how many buffers of others are held."""
    return live_holds


cdef class Hold:
    """A live export of somebody's memory: while it is held, the memory stays where it is."""

    def __init__(self):
        raise TypeError("holds are made by requests and responses")

    def __dealloc__(self):
        self.drop()

    cdef int acquire(self, object memory, int flags) except -1:
        global live_holds
        # Never FORMAT: numpy cannot describe every dtype that has plain bytes (bfloat16).
        PyObject_GetBuffer(memory, &self.view, flags)
        self.held = True
        live_holds += 1
        return 0

    cdef void drop(self) noexcept:
        global live_holds
        if self.held:
            self.held = False
            live_holds -= 1
            PyBuffer_Release(&self.view)


cdef Hold hold(object memory, int flags):
    cdef Hold held = Hold.__new__(Hold)
    held.acquire(memory, flags)
    return held


cdef class Gather:
    """An `Outgoing` that a channel in C++ can send from where its pieces lie."""

    cdef int gather(self, vector[ConstBuffer]* segments) except -1:
        """Say where the pieces are, in order; they stay there while the message is lent."""
        raise NotImplementedError

    cdef int lend(self) except -1:
        """Keep the memory, also after `release`, until `give_back`: it is still being sent."""
        raise NotImplementedError

    cdef int give_back(self) except -1:
        raise NotImplementedError


cdef class Landing:
    """An `Incoming` that a channel in C++ can feed without Python, on any thread.

    `finish` is called on it all the same, by Python, when the call has ended well.
    """

    cdef MessageSink* sink(self) except NULL:
        """Return what to feed, which the caller deletes before this goes; raises once released."""
        raise NotImplementedError


cdef class StreamLanding:
    """A `StreamIncoming` that a channel in C++ can feed without Python, on any thread."""

    cdef MessageSink* sink(self) except NULL:
        """Return what to feed; it is this object's, which outlives the call."""
        raise NotImplementedError

    cdef bint take(self, list into) except -1:
        """Append the messages that are complete; return whether there are any."""
        raise NotImplementedError
