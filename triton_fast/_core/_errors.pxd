# The one translator from C++ exceptions to Python's, used as `except +translate`.

cdef int translate() except -1
