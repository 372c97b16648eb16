# What Cython may use of csrc/wire.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from triton_fast._core._errors cimport translate


cdef extern from "triton_fast/span.hpp" namespace "triton_fast" nogil:
    cdef cppclass ConstBuffer:
        const uint8_t* data
        size_t size

    cdef cppclass MutableBuffer:
        uint8_t* data
        size_t size


cdef extern from "triton_fast/wire/datatype.hpp" namespace "triton_fast::wire" nogil:
    cdef enum class Datatype(uint8_t):
        kUnknown
        kBytes

    Datatype datatype_from_name(const string& name) noexcept
    size_t element_size(Datatype datatype) noexcept


cdef extern from "triton_fast/wire/buffer.hpp" namespace "triton_fast::wire" nogil:
    cdef cppclass OwnedBuffer:
        OwnedBuffer() noexcept
        uint8_t* data() noexcept
        size_t size() noexcept

    void expect_to_fill(void* memory, size_t size) noexcept


cdef extern from "<utility>" namespace "std" nogil:
    OwnedBuffer move(OwnedBuffer) noexcept


cdef extern from "triton_fast/wire/strings.hpp" namespace "triton_fast::wire" nogil:
    OwnedBuffer encode_elements(const ConstBuffer* elements, size_t count) except +translate
    OwnedBuffer encode_fixed_bytes(
        const uint8_t* elements, size_t count, size_t width) except +translate
    OwnedBuffer encode_fixed_ucs4(
        const uint8_t* elements, size_t count, size_t width) except +translate
    cbool count_elements(ConstBuffer encoded, size_t& count) noexcept
    ConstBuffer next_element(ConstBuffer& rest) noexcept


cdef extern from "triton_fast/wire/entries.hpp" namespace "triton_fast::wire" nogil:
    size_t count_entries(ConstBuffer message, size_t most) noexcept


cdef extern from "triton_fast/wire/request_writer.hpp" namespace "triton_fast::wire" nogil:
    unsigned int kRequestParameters
    unsigned int kInputParameters
    unsigned int kRequestedOutputParameters

    void append_parameter_bool(
        string& out, unsigned int field, const string& key, cbool value) except +translate
    void append_parameter_int64(
        string& out, unsigned int field, const string& key, int64_t value) except +translate
    void append_parameter_string(
        string& out, unsigned int field, const string& key, const string& value) except +translate
    void append_parameter_double(
        string& out, unsigned int field, const string& key, double value) except +translate
    void append_parameter_uint64(
        string& out, unsigned int field, const string& key, uint64_t value) except +translate
    void append_model(string& out, const string& name, const string& version) except +translate
    void append_requested_output(
        string& out, const string& name, const string& parameters) except +translate

    cdef cppclass RequestWriter:
        RequestWriter() except +translate
        void begin(const string& fixed, const string& request_id) except +translate
        void add_input(
            const string& name, const string& datatype, const int64_t* shape, size_t rank,
            const string& parameters, ConstBuffer payload) except +translate
        void add_input_without_payload(
            const string& name, const string& datatype, const int64_t* shape, size_t rank,
            const string& parameters) except +translate
        void seal() except +translate
        size_t byte_size() noexcept
        const vector[ConstBuffer]& segments() noexcept
        void render(uint8_t* out) noexcept


cdef extern from "triton_fast/wire/response_reader.hpp" namespace "triton_fast::wire" nogil:
    cdef enum class ParameterKind "triton_fast::wire::Parameter::Kind"(uint8_t):
        kNone "triton_fast::wire::Parameter::Kind::kNone"
        kBool "triton_fast::wire::Parameter::Kind::kBool"
        kInt64 "triton_fast::wire::Parameter::Kind::kInt64"
        kString "triton_fast::wire::Parameter::Kind::kString"
        kDouble "triton_fast::wire::Parameter::Kind::kDouble"
        kUint64 "triton_fast::wire::Parameter::Kind::kUint64"

    cdef cppclass Parameter:
        string key
        ParameterKind kind
        uint64_t bits
        string text

    cdef enum class OutputSource "triton_fast::wire::Output::Source"(uint8_t):
        kOwned "triton_fast::wire::Output::Source::kOwned"
        kPlaced "triton_fast::wire::Output::Source::kPlaced"
        kSharedMemory "triton_fast::wire::Output::Source::kSharedMemory"

    cdef cppclass Output:
        string name
        string datatype_name
        Datatype datatype
        vector[int64_t] shape
        vector[Parameter] parameters
        OutputSource source
        OwnedBuffer payload

    cdef cppclass ResponseReader:
        ResponseReader() except +translate
        void place(
            string name, Datatype datatype, vector[int64_t] shape,
            MutableBuffer destination) except +translate
        void expect_shared_memory(string name) except +translate
        void expect_envelope() noexcept
        void begin(uint64_t message_size) except +translate
        void feed(ConstBuffer piece) except +translate
        void finish() except +translate
        const string& error_message() noexcept
        const string& model_name() noexcept
        const string& model_version() noexcept
        const string& id() noexcept
        const vector[Parameter]& parameters() noexcept
        vector[Output]& outputs() noexcept
