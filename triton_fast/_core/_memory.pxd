# Memory that native calls borrow; see _memory.pyx.

from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from triton_fast._core.bridge cimport MessageSink
from triton_fast._core.wire cimport ConstBuffer


cdef class Hold:
    cdef Py_buffer view
    cdef cbool held
    cdef int acquire(self, object memory, int flags) except -1
    cdef void drop(self) noexcept


cdef Hold hold(object memory, int flags)


cdef class Gather:
    cdef int gather(self, vector[ConstBuffer]* segments) except -1
    cdef int lend(self) except -1
    cdef int give_back(self) except -1


cdef class Landing:
    cdef MessageSink* sink(self) except NULL


cdef class StreamLanding:
    cdef MessageSink* sink(self) except NULL
    cdef bint take(self, list into) except -1
