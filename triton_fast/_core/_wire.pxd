# Class layouts of the wire codec, for the native channel to reach past Python.

from triton_fast._core.csrc cimport OwnedBuffer, RequestWriter, ResponseReader
from libcpp cimport bool as cbool
from libcpp.string cimport string


cdef class Payload:
    cdef OwnedBuffer buffer


cdef class Hold:
    cdef Py_buffer view
    cdef cbool held
    cdef int acquire(self, object memory, int flags) except -1
    cdef void drop(self) noexcept


cdef class Header:
    cdef string fixed
    cdef readonly tuple shared_memory_outputs


cdef class Request:
    cdef RequestWriter writer
    cdef list holds
    cdef cbool sealed
    cdef cbool released
    cdef int lent
    cdef int seal(self) except -1
    cdef void lend(self) noexcept
    cdef void give_back(self)


cdef class Response:
    cdef ResponseReader* reader
    cdef list holds
    cdef cbool done
    cdef cbool released
    cdef int check_open(self) except -1


cdef Response adopt_response(ResponseReader* reader)
