"""Owns the way from C++ exceptions to Python's: every native call is declared `except +translate`.

Called with the thread state held, whatever the native call released. Imports errors, nothing above.
"""

from libcpp.string cimport string

from triton_fast.errors import InvalidTensor, SharedMemoryError, WireError


cdef extern from "triton_fast/error.hpp" namespace "triton_fast" nogil:
    cdef enum class ErrorKind:
        kWire
        kTensor
        kSharedMemory
        kMemory
        kOther

    cdef cppclass ErrorInfo:
        ErrorKind kind
        string message
        int number
        string output
        string answer

    ErrorInfo current_error() noexcept


cdef int translate() except -1:
    cdef ErrorInfo info = current_error()
    message = info.message.decode("utf-8", "replace")
    if info.kind == ErrorKind.kWire:
        raise WireError(message)
    if info.kind == ErrorKind.kTensor:
        raise InvalidTensor(
            message,
            output=info.output.decode("utf-8", "replace") or None,
            answer=info.answer.decode("utf-8", "replace") or None)
    if info.kind == ErrorKind.kSharedMemory:
        raise SharedMemoryError(info.number, message)
    if info.kind == ErrorKind.kMemory:
        raise MemoryError()
    raise RuntimeError(f"triton_fast's native code failed: {message}")
