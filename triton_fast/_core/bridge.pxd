# What Cython may use of the bridge between csrc/http2 and csrc/wire: sinks for a call's message.

from libcpp cimport bool as cbool

from triton_fast._core._errors cimport translate
from triton_fast._core.wire cimport OwnedBuffer, ResponseReader


cdef extern from "triton_fast/http2/message.hpp" namespace "triton_fast::http2" nogil:
    cdef cppclass MessageSink:
        pass


cdef extern from "triton_fast/bridge.hpp" namespace "triton_fast" nogil:
    cdef cppclass ReaderSink(MessageSink):
        ReaderSink(ResponseReader* reader) except +translate

    cdef cppclass QueueSink(MessageSink):
        QueueSink() except +translate
        ResponseReader* take() noexcept

    cdef cppclass BufferSink(MessageSink):
        BufferSink() except +translate
        cbool complete() noexcept
        const OwnedBuffer& buffer() noexcept
