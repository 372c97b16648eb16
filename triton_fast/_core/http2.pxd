# What Cython may use of csrc/http2, and of the bridge between it and csrc/wire.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from triton_fast._core._errors cimport translate
from triton_fast._core.csrc cimport ConstBuffer, OwnedBuffer, ResponseReader


cdef extern from "triton_fast/http2/message.hpp" namespace "triton_fast::http2" nogil:
    cdef enum class Status(uint8_t):
        kOk

    cdef cppclass MessageSink:
        pass

    cdef cppclass CallSpec:
        string path
        vector[pair[string, string]] metadata
        string encoding
        vector[ConstBuffer] segments
        uint64_t message_size

    cdef cppclass Outcome:
        Status status
        string message
        cbool compressed
        string encoding


cdef extern from "triton_fast/http2/socket.hpp" namespace "triton_fast::http2" nogil:
    const int64_t kNever

    cdef cppclass Address:
        string host
        string port
        string unix_path


cdef extern from "triton_fast/http2/connection.hpp" namespace "triton_fast::http2" nogil:
    cdef cppclass Keepalive:
        int64_t after_ns
        int64_t timeout_ns

    cdef enum class Progress:
        kDone
        kInterrupted


cdef extern from "triton_fast/http2/pool.hpp" namespace "triton_fast::http2" nogil:
    cdef cppclass Pool:
        void close() noexcept
        cbool inherited() noexcept

    shared_ptr[Pool] make_pool(
        Address address, string authority, size_t most, int64_t idle_ns) except +translate

    cdef cppclass Call:
        Call(
            shared_ptr[Pool] pool, CallSpec spec, MessageSink* sink, int64_t deadline_ns,
            const Keepalive& keepalive, int64_t busy_ns) except +translate
        Progress run() except +translate
        Outcome end() noexcept
        void cancel() noexcept

    void dispose(Call* call) noexcept


cdef extern from "triton_fast/http2/nghttp2_compat.hpp" nogil:
    const char* NGHTTP2_VERSION
    ctypedef struct nghttp2_info:
        const char* version_str
    nghttp2_info* nghttp2_version(int least) noexcept


cdef extern from "triton_fast/bridge.hpp" namespace "triton_fast" nogil:
    cdef cppclass ReaderSink(MessageSink):
        ReaderSink(ResponseReader* reader) except +translate

    cdef cppclass BufferSink(MessageSink):
        BufferSink() except +translate
        cbool complete() noexcept
        const OwnedBuffer& buffer() noexcept

    void rethrow(const Outcome& outcome) except +translate
