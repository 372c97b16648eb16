# What Cython may use of csrc/http2.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from triton_fast._core._errors cimport translate
from triton_fast._core.bridge cimport MessageSink
from triton_fast._core.wire cimport ConstBuffer


cdef extern from "triton_fast/http2/message.hpp" namespace "triton_fast::http2" nogil:
    cdef enum class Status(uint8_t):
        kOk

    cdef cppclass CallSpec:
        string path
        vector[pair[string, string]] metadata
        string encoding
        vector[ConstBuffer] segments
        uint64_t message_size
        cbool streaming

    cdef cppclass Outcome:
        Status status
        string message
        cbool compressed
        string encoding
        cbool safe_to_retry


cdef extern from "triton_fast/http2/socket.hpp" namespace "triton_fast::http2" nogil:
    const int64_t kNever

    cdef cppclass Address:
        string host
        string port
        string unix_path

    cdef cppclass Socket:
        pass

    cdef cppclass Connecting:
        Connecting(Address address) except +translate
        cbool step(int64_t deadline_ns, int64_t slice_end_ns) except +translate
        int descriptor() noexcept
        Socket take() noexcept

    int64_t monotonic_ns() noexcept


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

    cdef cppclass StreamCall:
        StreamCall(
            shared_ptr[Pool] pool, CallSpec spec, MessageSink* sink, int64_t deadline_ns,
            const Keepalive& keepalive, int64_t busy_ns) except +translate
        void post(vector[ConstBuffer] segments, uint64_t size, cbool last) except +translate
        Progress send(int64_t until_ns) except +translate
        cbool sent() except +translate
        void give_up() except +translate
        void half_close() except +translate
        Progress receive(int64_t until_ns) except +translate
        cbool over() noexcept
        const Outcome& outcome() noexcept
        void cancel() noexcept

    void dispose(Call* call) noexcept
    void dispose(StreamCall* call) noexcept


cdef extern from "triton_fast/http2/multiplexer.hpp" namespace "triton_fast::http2" nogil:
    cdef cppclass Multiplexer:
        Multiplexer(Socket socket, const string& authority) except +translate
        int descriptor() noexcept
        int32_t open(
            const CallSpec& call, MessageSink* sink, int64_t timeout_ns) except +translate
        void send(
            int32_t id, const vector[ConstBuffer]& segments, uint64_t size) except +translate
        void half_close(int32_t id) except +translate
        void taken(int32_t id) except +translate
        void cancel(int32_t id) except +translate
        cbool done(int32_t id) except +translate
        cbool lent(int32_t id) except +translate
        Outcome outcome(int32_t id) except +translate
        void close(int32_t id) except +translate
        void flush() except +translate
        cbool wants_write() except +translate
        void receive() except +translate
        vector[int32_t] news() except +translate
        cbool usable() noexcept
        uint32_t most_calls() noexcept
        cbool settled() noexcept
        void fail(const string& reason) except +translate
        cbool broken() noexcept
        void hang_up() noexcept
        uint64_t ping() except +translate
        uint64_t acknowledged_pings() noexcept
        uint64_t received() noexcept
        cbool inherited() noexcept

    void dispose(Multiplexer* multiplexer) noexcept


cdef extern from "triton_fast/http2/nghttp2_compat.hpp" nogil:
    const char* NGHTTP2_VERSION
    ctypedef struct nghttp2_info:
        const char* version_str
    nghttp2_info* nghttp2_version(int least) noexcept


cdef extern from "triton_fast/bridge.hpp" namespace "triton_fast" nogil:
    void rethrow(const Outcome& outcome) except +translate
