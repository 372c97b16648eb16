"""The native HTTP/2 channel for Python: owns the pool of connections and the calls on them.

Thin over ``csrc/http2``. A `Pool` may be used by any thread; a `Call` is one thread's, but for
`Call.cancel`. The GIL is not held while a call waits, and no native callback takes it.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cython.operator cimport dereference
from libc.stdint cimport int64_t, uint8_t
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from triton_fast._core cimport http2
from triton_fast._core._wire cimport Request, Response
from triton_fast._core.csrc cimport ConstBuffer


def versions():
    """Return the nghttp2 that this was built against, and the one that is loaded."""
    return (
        http2.NGHTTP2_VERSION.decode("ascii"),
        http2.nghttp2_version(0).version_str.decode("ascii"),
    )


cdef class Pool:
    """Connections to one server.

    Parameters
    ----------
    host, port : str
        Name or address, and number.
    unix_path : bytes
        Path of a Unix socket, in place of those; empty for none.
    authority : str
        What calls carry as ``:authority``.
    most : int
        Connections at a time.
    idle_ns : int, nanoseconds
        How long one is kept unused.
    """

    cdef shared_ptr[http2.Pool] pool

    def __cinit__(
        self, str host, str port, bytes unix_path, str authority, size_t most, int64_t idle_ns
    ):
        cdef http2.Address address
        address.host = host.encode("idna" if not host.isascii() else "ascii")
        address.port = port.encode("ascii")
        address.unix_path = unix_path
        self.pool = http2.make_pool(address, authority.encode("ascii"), most, idle_ns)

    def close(self):
        """End running calls and refuse further ones. Idempotent."""
        with nogil:
            dereference(self.pool).close()

    @property
    def inherited(self):
        """Whether this is a copy, in a forked child, of the parent's: it makes no calls."""
        return dereference(self.pool).inherited()


@cython.no_gc_clear  # a call that is not over reads its outgoing's memory until it is freed
cdef class Call:
    """One unary call.

    Parameters
    ----------
    pool : Pool
        Where its connection is from.
    path : str
        Full gRPC path.
    outgoing : Outgoing
        Kept, and its memory borrowed, until `end`.
    incoming : Response or None
        Parses the message as it arrives; None for it to be gathered, and returned by `end`.
    metadata : sequence of (str, str)
        As on the wire.
    encoding : str
        How ``outgoing`` is compressed; empty if it is not.
    deadline_ns : int or None
        Nanoseconds of ``time.monotonic_ns()``.
    keepalive : (int, int)
        Silence after which to ping, and how long to wait for the answer, in nanoseconds; 0 is off.
    busy_ns : int
        How long to ask again and again for the answer before sleeping.
    """

    cdef http2.Call* call
    cdef http2.ReaderSink* reader
    cdef http2.BufferSink* gathered
    cdef object outgoing
    cdef Response incoming

    def __cinit__(
        self, Pool pool not None, str path, outgoing, Response incoming, metadata, str encoding,
        deadline_ns, keepalive, int64_t busy_ns
    ):
        cdef http2.CallSpec spec
        cdef http2.Keepalive pings
        cdef http2.MessageSink* sink
        cdef ConstBuffer segment
        cdef Request request
        self.outgoing = outgoing
        self.incoming = incoming
        spec.path = path.encode("ascii")
        spec.encoding = encoding.encode("ascii")
        for name, value in metadata:
            spec.metadata.push_back(
                pair[string, string](name.encode("ascii"), value.encode("ascii")))
        spec.message_size = outgoing.byte_size
        if isinstance(outgoing, Request):
            request = outgoing
            spec.segments = request.writer.segments()
        else:
            for address, size in outgoing.segments():
                segment.data = <const uint8_t*><size_t>address
                segment.size = size
                spec.segments.push_back(segment)
        pings.after_ns, pings.timeout_ns = keepalive
        if incoming is not None:
            incoming.check_open()
            self.reader = new http2.ReaderSink(incoming.reader)
            sink = self.reader
        else:
            self.gathered = new http2.BufferSink()
            sink = self.gathered
        self.call = new http2.Call(
            pool.pool, spec, sink, http2.kNever if deadline_ns is None else deadline_ns, pings,
            busy_ns)

    def __dealloc__(self):
        if self.call is not NULL:
            http2.dispose(self.call)
        del self.reader
        del self.gathered

    def run(self):
        """Make the call, and return when it is over.

        Raises
        ------
        BaseException
            What a signal handler raised, KeyboardInterrupt say; the call is over then too.
        """
        cdef http2.Progress progress
        try:
            while True:
                with nogil:
                    progress = self.call.run()
                if progress == http2.Progress.kDone:
                    return
                PyErr_CheckSignals()
        except BaseException:
            # The caller's memory goes when this gets to it.
            with nogil:
                self.call.end()
            raise

    def end(self):
        """Say what came of the call; afterwards nothing of the caller's is borrowed.

        Returns
        -------
        tuple
            Status number, message, whether the response was compressed, how, and the message that
            was gathered (None if there is none).

        Raises
        ------
        WireError, InvalidTensor
            What ``incoming`` did not take.
        """
        cdef http2.Outcome outcome
        with nogil:
            outcome = self.call.end()
        self.outgoing = None
        http2.rethrow(outcome)
        if self.incoming is not None and outcome.status == http2.Status.kOk:
            self.incoming.done = True  # an OK comes only with a message that finish() accepted
        message = None
        if self.gathered is not NULL and self.gathered.complete():
            message = (<const char*>self.gathered.buffer().data())[:self.gathered.buffer().size()]
        return (
            <int>outcome.status,
            outcome.message.decode("utf-8", "replace"),
            outcome.compressed,
            outcome.encoding.decode("ascii", "replace"),
            message,
        )

    def cancel(self):
        """Have `run` end the call with CANCELLED. Any thread."""
        self.call.cancel()
