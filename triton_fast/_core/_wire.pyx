"""The wire codec for Python: owns the live buffers behind a request and a response.

Thin over ``csrc/wire``. Any thread may use an object of these classes, one at a time. Never imports
numpy's C interface (the buffer protocol serves), nor anything of the package but errors.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_ND,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
)
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.number cimport PyNumber_Index
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint8_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from triton_fast._core._memory cimport Gather, Hold, Landing, StreamLanding, hold
from triton_fast._core.bridge cimport MessageSink, QueueSink, ReaderSink
from triton_fast._core.wire cimport (
    ConstBuffer,
    Datatype,
    MutableBuffer,
    Output,
    OutputSource,
    OwnedBuffer,
    Parameter,
    ParameterKind,
    append_model,
    append_parameter_bool,
    append_parameter_double,
    append_parameter_int64,
    append_parameter_string,
    append_parameter_uint64,
    append_requested_output,
    count_elements,
    count_entries,
    datatype_from_name,
    element_size,
    encode_elements,
    encode_fixed_bytes,
    encode_fixed_ucs4,
    expect_to_fill,
    kInputParameters,
    kRequestedOutputParameters,
    kRequestParameters,
    move,
    next_element,
)

from triton_fast._core._memory import held_buffers
from triton_fast.errors import ClosedError, InvalidOption, InvalidTensor

cdef extern from "Python.h":
    # Neither is in Cython's own declarations with the signature that the stable ABI has.
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    int PyBytes_AsStringAndSize(object text, char** out, Py_ssize_t* size) except -1

# Below this many bytes, letting other threads run costs more than the copy does.
cdef size_t NOGIL_SIZE = 65536
cdef char* BYTE_FORMAT = b"B"

# Objects alive that stand for memory, for the tests' ledger. Touched with the GIL held.
cdef Py_ssize_t live_payloads = 0


def live_counts():
    """Return how many payloads exist, and how many buffers of others are held."""
    return {"payloads": live_payloads, "holds": held_buffers()}


cdef class Payload:
    """Bytes of a tensor in memory of our own, writable through the buffer protocol.

    Notes
    -----
    An array made on it keeps it alive; the memory goes back when the last one dies.
    """

    def __cinit__(self):
        global live_payloads
        live_payloads += 1

    def __dealloc__(self):
        global live_payloads
        live_payloads -= 1

    def __init__(self):
        raise TypeError("payloads are made by encoding and decoding")

    def __len__(self):
        return <Py_ssize_t>self.buffer.size()

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.obj = self
        view.buf = <void*>self.buffer.data()
        view.len = <Py_ssize_t>self.buffer.size()
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


cdef Payload new_payload(OwnedBuffer* taken):
    cdef Payload payload = Payload.__new__(Payload)
    payload.buffer = move(taken[0])
    return payload


cdef string utf8(object text, str what) except *:
    cdef Py_ssize_t size = 0
    cdef const char* chars
    if not isinstance(text, str):
        raise InvalidOption(f"{what} must be a str, got {type(text).__name__}")
    try:
        chars = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError as error:
        raise InvalidOption(f"{what} {text!r} cannot be written as UTF-8") from error
    return string(chars, size)


cdef string encode_parameters(unsigned int field, object parameters) except *:
    """Encode a mapping of parameters: bool, int, float and str, by their Python types."""
    cdef string out
    cdef string key
    if parameters is None:
        return out
    for name, value in parameters.items():
        key = utf8(name, "a parameter's name")
        # numpy's scalars count as what they stand for.
        if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
            value = value.item()
        if isinstance(value, bool):
            append_parameter_bool(out, field, key, value)
        elif isinstance(value, int):
            if value < INT64_MIN or value > INT64_MAX:
                raise InvalidOption(
                    f"parameter {name!r} is {value}; a parameter holds 64 bits with a sign")
            append_parameter_int64(out, field, key, value)
        elif isinstance(value, float):
            append_parameter_double(out, field, key, value)
        elif isinstance(value, str):
            append_parameter_string(out, field, key, utf8(value, f"parameter {name!r}"))
        else:
            raise InvalidOption(
                f"parameter {name!r} is a {type(value).__name__}; "
                "a parameter is a bool, an int, a float or a str")
    return out


cdef class Header:
    """The part of a request that stays the same from call to call, encoded once. Immutable.

    Parameters
    ----------
    model_name, model_version : str
        Which model to run; an empty version leaves the choice to the server.
    parameters : mapping of str to bool, int, float or str, optional
        Request parameters.
    priority : int, default 0
        0 for the model's default, 1 for the highest.
    queue_timeout_us : int, microseconds, optional
        How long the request may wait in the server's queue.
    outputs : sequence of (str, mapping or None)
        Names of the outputs to return and their parameters; none for all.

    Source
    ------
    inference.proto, ModelInferRequest; Triton's "parameters extension" and "schedule policy
    extension".
    """

    def __init__(
        self, model_name, model_version="", *, parameters=None, priority=0, queue_timeout_us=None,
        outputs=()
    ):
        cdef string encoded
        append_model(
            self.fixed, utf8(model_name, "model_name"), utf8(model_version, "model_version"))
        self.fixed.append(encode_parameters(kRequestParameters, parameters))
        if priority:
            if not isinstance(priority, int) or not 0 < priority <= UINT64_MAX:
                raise InvalidOption(f"priority must be a whole number from 0 up, got {priority!r}")
            append_parameter_uint64(self.fixed, kRequestParameters, b"priority", priority)
        if queue_timeout_us is not None:
            append_parameter_int64(self.fixed, kRequestParameters, b"timeout", queue_timeout_us)
        shared = []
        for name, output_parameters in outputs:
            encoded = encode_parameters(kRequestedOutputParameters, output_parameters)
            append_requested_output(self.fixed, utf8(name, "an output's name"), encoded)
            if output_parameters and "shared_memory_region" in output_parameters:
                shared.append(name)
        self.shared_memory_outputs = tuple(shared)

    @property
    def byte_size(self):
        """Bytes of the encoded part."""
        return self.fixed.size()

    def request(self, request_id):
        """Return a `Request` that begins with this."""
        return Request(self, request_id)

    def response(self):
        """Return a `Response` that receives the answer to such a request."""
        return Response(self.shared_memory_outputs)


cdef class Request(Gather):
    """One ModelInferRequest as a gather list; an `Outgoing` to a channel.

    Parameters
    ----------
    header : Header
        What was encoded beforehand.
    request_id : str, default ""
        Comes back with the response.

    Notes
    -----
    Owns its header bytes. Each tensor's memory is borrowed and held as a live buffer until
    `release`, which whoever made the request calls once the call is over.
    """

    def __init__(self, Header header not None, request_id=""):
        self.holds = []
        self.writer.begin(header.fixed, utf8(request_id, "request_id"))

    def add_input(self, name, datatype, shape, payload, parameters=None):
        """Add a tensor.

        Parameters
        ----------
        name, datatype : str
            As the model calls it; the datatype in Triton's spelling.
        shape : sequence of int
            With the batch dimension, if the model has one.
        payload : buffer or None
            Its elements, C-contiguous; held until `release`. None for a tensor in shared memory.
        parameters : mapping, optional
            Parameters of this tensor.

        Raises
        ------
        InvalidTensor
            If the message would be longer than protobuf allows.
        BufferError
            If the payload is not contiguous.
        """
        cdef Hold held
        cdef ConstBuffer memory
        cdef vector[int64_t] dimensions
        cdef string encoded
        if self.released:
            raise ClosedError("the request's memory was given back")
        if self.sealed:
            raise RuntimeError("the request is complete")
        for dimension in shape:
            dimensions.push_back(PyNumber_Index(dimension))
        if parameters is not None:
            encoded = encode_parameters(kInputParameters, parameters)
        if payload is None:
            self.writer.add_input_without_payload(
                utf8(name, "an input's name"), utf8(datatype, "a datatype"), dimensions.data(),
                dimensions.size(), encoded)
            return
        held = hold(payload, PyBUF_C_CONTIGUOUS)
        memory.data = <const uint8_t*>held.view.buf
        memory.size = <size_t>held.view.len
        self.writer.add_input(
            utf8(name, "an input's name"), utf8(datatype, "a datatype"), dimensions.data(),
            dimensions.size(), encoded, memory)
        self.holds.append(held)

    cdef int seal(self) except -1:
        if self.released:
            raise ClosedError("the request's memory was given back")
        if not self.sealed:
            self.writer.seal()
            self.sealed = True
        return 0

    @property
    def byte_size(self):
        """Bytes of the whole message."""
        self.seal()
        return self.writer.byte_size()

    def segments(self):
        """Return the gather list as (address, byte_size) pairs, in order."""
        cdef size_t i
        self.seal()
        return [
            (<size_t>self.writer.segments()[i].data, self.writer.segments()[i].size)
            for i in range(self.writer.segments().size())
        ]

    def render(self):
        """Return the message in one piece; each payload is copied once."""
        cdef bytes message
        cdef uint8_t* out
        self.seal()
        message = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self.writer.byte_size())
        out = <uint8_t*>PyBytes_AsString(message)
        if self.writer.byte_size() < NOGIL_SIZE:
            self.writer.render(out)
        else:
            # Nobody else knows the new object yet, and the holds keep the tensors in place.
            with nogil:
                expect_to_fill(out, self.writer.byte_size())
                self.writer.render(out)
        return message

    def release(self):
        """Let go of the tensors' memory. Idempotent; the request is of no use afterwards.

        What a channel still reads for a call that was given up is held until it does not.
        """
        self.released = True
        if self.lent == 0:
            self.holds.clear()

    cdef int gather(self, vector[ConstBuffer]* segments) except -1:
        self.seal()
        segments[0] = self.writer.segments()
        return 0

    cdef int lend(self) except -1:
        self.lent += 1
        return 0

    cdef int give_back(self) except -1:
        self.lent -= 1
        if self.lent == 0 and self.released:
            self.holds.clear()
        return 0


cdef object parameter_value(const Parameter* parameter):
    cdef double number
    if parameter.kind == ParameterKind.kBool:
        return parameter.bits != 0
    if parameter.kind == ParameterKind.kInt64:
        return <int64_t>parameter.bits
    if parameter.kind == ParameterKind.kUint64:
        return parameter.bits
    if parameter.kind == ParameterKind.kDouble:
        memcpy(&number, &parameter.bits, sizeof(number))
        return number
    if parameter.kind == ParameterKind.kString:
        return parameter.text.decode("utf-8")
    return None


cdef dict parameters_dict(const vector[Parameter]* parameters):
    cdef size_t i
    # A key may be there more than once, and the last one counts, as in every protobuf map.
    return {
        parameters[0][i].key.decode("utf-8"): parameter_value(&parameters[0][i])
        for i in range(parameters.size())
    }


cdef class Response(Landing):
    """One ModelInferResponse, decoded as it arrives; an `Incoming` to a channel.

    Parameters
    ----------
    shared_memory_outputs : sequence of str
        Outputs that the request asked for in shared memory: no elements come for them.
    envelope : bool, default False
        Whether the message is a stream's, ModelStreamInferResponse.

    Notes
    -----
    Owns what it has decoded, until `take` hands it on. Arrays given to `place` are held as live
    buffers until `release`.
    """

    def __cinit__(self):
        self.holds = []

    def __dealloc__(self):
        del self.reader

    def __init__(self, shared_memory_outputs=(), *, envelope=False):
        if self.reader is not NULL:
            raise TypeError("a response is made once: a channel may be at its reader")
        self.reader = new ResponseReader()
        if envelope:
            self.reader.expect_envelope()
        for name in shared_memory_outputs:
            self.reader.expect_shared_memory(utf8(name, "an output's name"))

    def place(self, name, datatype, shape, array):
        """Have an output written to an array of the caller's, if it turns out to fit.

        Parameters
        ----------
        name, datatype : str
            The output, and what the array holds.
        shape : sequence of int
            Of the array.
        array : writable C-contiguous buffer
            Held until `release`; its contents are undefined if the call fails.

        Raises
        ------
        BufferError
            If the array cannot be written to, or is not contiguous.
        """
        cdef vector[int64_t] dimensions
        cdef MutableBuffer memory
        cdef Hold held
        self.check_open()
        held = hold(array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        for dimension in shape:
            dimensions.push_back(PyNumber_Index(dimension))
        memory.data = <uint8_t*>held.view.buf
        memory.size = <size_t>held.view.len
        self.reader.place(
            utf8(name, "an output's name"), datatype_from_name(utf8(datatype, "a datatype")),
            dimensions, memory)
        self.holds.append(held)

    def begin(self, byte_size):
        """Announce the length of the message; see `triton_fast.channels.base.Incoming`."""
        self.check_open()
        self.reader.begin(byte_size)

    def feed(self, data):
        """Take the next piece of the message; see `triton_fast.channels.base.Incoming`."""
        cdef ConstBuffer piece
        cdef Hold held
        self.check_open()
        held = hold(data, PyBUF_SIMPLE)
        try:
            piece.data = <const uint8_t*>held.view.buf
            piece.size = <size_t>held.view.len
            if piece.size < NOGIL_SIZE:
                self.reader.feed(piece)
            else:
                with nogil:
                    self.reader.feed(piece)
        finally:
            held.drop()

    def finish(self):
        """Check that the message is complete; see `triton_fast.channels.base.Incoming`."""
        self.check_open()
        with nogil:
            self.reader.finish()
        self.done = True

    @property
    def error_message(self):
        """What a stream's message says that went wrong; empty if nothing did."""
        self.check_open()
        return self.reader.error_message().decode("utf-8")

    @property
    def string_bytes(self):
        """How many bytes the elements of BYTES tensors take, that `take` has yet to hand on."""
        cdef size_t i
        cdef size_t total = 0
        if not self.done:
            return 0
        for i in range(self.reader.outputs().size()):
            if self.reader.outputs()[i].datatype == Datatype.kBytes:
                total += self.reader.outputs()[i].payload.size()
        return total

    def take(self):
        """Hand on what was decoded, once.

        Returns
        -------
        tuple
            Model name, model version, id, parameters, and a list with
            ``(name, datatype, shape, payload, parameters)`` for each output. The payload is a
            `Payload`; True when the output is in the array given to `place`; None when it is in
            shared memory.
        """
        cdef size_t i
        cdef Output* output
        if not self.done:
            raise RuntimeError("the response is not complete")
        self.done = False
        outputs = []
        for i in range(self.reader.outputs().size()):
            output = &self.reader.outputs()[i]
            if output.source == OutputSource.kPlaced:
                payload = True
            elif output.source == OutputSource.kSharedMemory:
                payload = None
            else:
                payload = new_payload(&output.payload)
            outputs.append((
                output.name.decode("utf-8"),
                output.datatype_name.decode("utf-8"),
                tuple(output.shape),
                payload,
                parameters_dict(&output.parameters) if output.parameters.size() else {},
            ))
        return (
            self.reader.model_name().decode("utf-8"),
            self.reader.model_version().decode("utf-8"),
            self.reader.id().decode("utf-8"),
            parameters_dict(&self.reader.parameters()),
            outputs,
        )

    def release(self):
        """Let go of the arrays given to `place`. Idempotent; nothing is decoded afterwards."""
        self.released = True
        self.holds.clear()

    cdef MessageSink* sink(self) except NULL:
        self.check_open()
        return new ReaderSink(self.reader)

    cdef int check_open(self) except -1:
        # The reader still knows where the arrays were.
        if self.released:
            raise ClosedError("the response's memory was given back")
        if self.reader is NULL:
            raise TypeError("the response was made without its __init__")
        return 0


cdef class StreamResponses(StreamLanding):
    """The messages of one stream, each a ModelStreamInferResponse; a `StreamIncoming` to a channel.

    Notes
    -----
    Owns the messages that C++ has decoded, until they are taken.
    """

    def __cinit__(self):
        self.queue = new QueueSink()

    def __dealloc__(self):
        del self.queue

    def message(self):
        """Return what is fed the next message; see `triton_fast.channels.base.StreamIncoming`."""
        return Response(envelope=True)

    cdef MessageSink* sink(self) except NULL:
        return self.queue

    cdef bint take(self, list into) except -1:
        cdef ResponseReader* reader
        cdef Response response
        cdef bint found = False
        while True:
            reader = self.queue.take()
            if reader is NULL:
                return found
            response = Response.__new__(Response)
            response.reader = reader
            response.done = True
            into.append(response)
            found = True


cdef ConstBuffer element_of(object value, Py_ssize_t index) except *:
    """The bytes of one element of a BYTES tensor; valid while the object lives."""
    cdef ConstBuffer element
    cdef Py_ssize_t size = 0
    cdef char* chars
    if isinstance(value, bytes):
        PyBytes_AsStringAndSize(value, &chars, &size)
        element.data = <const uint8_t*>chars
    elif isinstance(value, str):
        try:
            element.data = <const uint8_t*>PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError as error:
            raise InvalidTensor(
                f"element {index} is {value!r}, which cannot be written as UTF-8") from error
    else:
        raise InvalidTensor(
            f"element {index} is a {type(value).__name__}; "
            "a BYTES tensor holds str and bytes objects")
    element.size = <size_t>size
    return element


def encode_sequence(values):
    """Encode a sequence of str and bytes objects as the payload of a BYTES tensor.

    Raises
    ------
    InvalidTensor
        If an element is something else; the message says which.
    """
    cdef vector[ConstBuffer] elements
    cdef OwnedBuffer encoded
    cdef Py_ssize_t index = 0
    # The elements stay alive because the list has them and nothing else runs: the GIL is held until
    # they are copied. What is neither list nor tuple may make its elements as it goes.
    if type(values) is not list and type(values) is not tuple:
        values = list(values)
    elements.reserve(len(values))
    for value in values:
        elements.push_back(element_of(value, index))
        index += 1
    encoded = encode_elements(elements.data(), elements.size())
    return new_payload(&encoded)


def encode_objects(array):
    """Encode a C-contiguous numpy array of dtype object; see `encode_sequence`."""
    cdef Hold held = hold(array, PyBUF_C_CONTIGUOUS)
    cdef vector[ConstBuffer] elements
    cdef OwnedBuffer encoded
    cdef PyObject** slots
    cdef Py_ssize_t index
    cdef Py_ssize_t count
    try:
        slots = <PyObject**>held.view.buf
        count = held.view.len // <Py_ssize_t>sizeof(PyObject*)
        elements.reserve(count)
        for index in range(count):
            # numpy may leave a slot of an object array empty; it reads as None.
            elements.push_back(
                element_of(None if slots[index] is NULL else <object>slots[index], index))
        encoded = encode_elements(elements.data(), elements.size())
    finally:
        held.drop()
    return new_payload(&encoded)


def encode_fixed(array, Py_ssize_t width, bint unicode):
    """Encode a C-contiguous numpy array of dtype S or U in native byte order.

    Parameters
    ----------
    array : buffer
        The elements.
    width : int
        Of each, in bytes for S and in characters for U; at least 1.
    unicode : bool
        Whether it is U.

    Raises
    ------
    InvalidTensor
        If a character cannot be written as UTF-8.
    """
    cdef Hold held
    cdef OwnedBuffer encoded
    cdef const uint8_t* elements
    cdef size_t count
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    held = hold(array, PyBUF_C_CONTIGUOUS)
    try:
        elements = <const uint8_t*>held.view.buf
        count = <size_t>(held.view.len // (width * (4 if unicode else 1)))
        with nogil:
            if unicode:
                encoded = encode_fixed_ucs4(elements, count, width)
            else:
                encoded = encode_fixed_bytes(elements, count, width)
    finally:
        held.drop()
    return new_payload(&encoded)


def address_of(bytes message not None):
    """Return where in memory a bytes object's bytes are, and how many; valid while it lives."""
    return <size_t>PyBytes_AsString(message), len(message)


def count_encoded(data):
    """Return how many elements an encoded BYTES tensor has, or -1 if it is cut off."""
    cdef Hold held = hold(data, PyBUF_C_CONTIGUOUS)
    cdef ConstBuffer encoded
    cdef size_t count = 0
    cdef cbool whole
    try:
        encoded.data = <const uint8_t*>held.view.buf
        encoded.size = <size_t>held.view.len
        with nogil:
            whole = count_elements(encoded, count)
    finally:
        held.drop()
    return count if whole else -1


def count_message_entries(bytes message not None, size_t most):
    """Return how many texts and messages there are in a protobuf message; ``most`` + 1 for more.

    An estimate from above: a text counts for what it would be as a message.
    """
    cdef ConstBuffer encoded
    cdef size_t count
    encoded.data = <const uint8_t*>PyBytes_AsString(message)
    encoded.size = <size_t>len(message)
    with nogil:
        count = count_entries(encoded, most)
    return count


def decode_elements(Payload payload not None, array):
    """Fill a C-contiguous numpy array of dtype object with the bytes objects of a BYTES tensor.

    Parameters
    ----------
    payload : Payload
        As decoded by `Response`, which has checked it.
    array : numpy.ndarray, dtype object, C-contiguous
        With as many elements as the tensor.

    Notes
    -----
    Other threads have their turn every millisecond or so: a million elements take tens of them.
    """
    cdef Hold held = hold(array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    cdef ConstBuffer rest
    cdef ConstBuffer element
    cdef PyObject** slots
    cdef PyObject* old
    cdef Py_ssize_t index = 0
    cdef Py_ssize_t count
    cdef size_t expected = 0
    try:
        rest.data = payload.buffer.data()
        rest.size = payload.buffer.size()
        slots = <PyObject**>held.view.buf
        count = held.view.len // <Py_ssize_t>sizeof(PyObject*)
        if not count_elements(rest, expected) or <Py_ssize_t>expected != count:
            raise ValueError(f"{expected} elements do not fill an array of {count}")
        for index in range(count):
            element = next_element(rest)
            value = PyBytes_FromStringAndSize(<const char*>element.data, <Py_ssize_t>element.size)
            Py_INCREF(value)
            old = slots[index]
            slots[index] = <PyObject*>value
            Py_XDECREF(old)
            if index & 0x3fff == 0x3fff:
                with nogil:
                    pass
    finally:
        held.drop()


def datatype_size(name):
    """Return the bytes of one element of a datatype; 0 for BYTES, -1 if there is no such one."""
    cdef Datatype datatype = datatype_from_name(utf8(name, "a datatype"))
    return -1 if datatype == Datatype.kUnknown else element_size(datatype)
