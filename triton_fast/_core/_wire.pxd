# Class layouts of the wire codec.

from triton_fast._core._memory cimport Gather, Landing, StreamLanding
from triton_fast._core.bridge cimport QueueSink
from triton_fast._core.wire cimport OwnedBuffer, RequestWriter, ResponseReader
from libcpp cimport bool as cbool
from libcpp.string cimport string


cdef class Payload:
    cdef OwnedBuffer buffer


cdef class Header:
    cdef string fixed
    cdef readonly tuple shared_memory_outputs


cdef class Request(Gather):
    cdef RequestWriter writer
    cdef list holds
    cdef cbool sealed
    cdef cbool released
    cdef int lent
    cdef int seal(self) except -1


cdef class Response(Landing):
    cdef ResponseReader* reader
    cdef list holds
    cdef cbool done
    cdef cbool released
    cdef int check_open(self) except -1


cdef class StreamResponses(StreamLanding):
    cdef QueueSink* queue
