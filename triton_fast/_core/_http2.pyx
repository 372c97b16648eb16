"""The native HTTP/2 channel for Python: owns the pool of connections and the calls on them.

Thin over ``csrc/http2``. A `Pool` may be used by any thread; a `Call` is one thread's, but for
`Call.cancel`; a `StreamCall` may have one that sends and one that receives; a `Multiplexer` is an
event loop's. The GIL is not held while a call waits, and no native callback takes it.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cython.operator cimport dereference
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp.memory cimport shared_ptr
from libcpp.string cimport string
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from triton_fast._core cimport http2
from triton_fast._core._memory cimport Gather, Landing, StreamLanding
from triton_fast._core.bridge cimport BufferSink, MessageSink
from triton_fast._core.wire cimport ConstBuffer


def versions():
    """Return the nghttp2 that this was built against, and the one that is loaded."""
    return (
        http2.NGHTTP2_VERSION.decode("ascii"),
        http2.nghttp2_version(0).version_str.decode("ascii"),
    )


cdef http2.CallSpec spec_of(str path, metadata, str encoding) except *:
    cdef http2.CallSpec spec
    spec.path = path.encode("ascii")
    spec.encoding = encoding.encode("ascii")
    for name, value in metadata:
        spec.metadata.push_back(pair[string, string](name.encode("ascii"), value.encode("ascii")))
    spec.message_size = 0
    spec.streaming = False
    return spec


cdef vector[ConstBuffer] segments_of(outgoing) except *:
    cdef vector[ConstBuffer] segments
    cdef ConstBuffer segment
    if isinstance(outgoing, Gather):
        (<Gather>outgoing).gather(&segments)
        return segments
    for address, size in outgoing.segments():
        segment.data = <const uint8_t*><size_t>address
        segment.size = size
        segments.push_back(segment)
    return segments


@cython.final
cdef class Outcome:
    """What came of a call.

    Attributes
    ----------
    status : int
        As in gRPC; see `triton_fast.StatusCode`.
    message : str
        What the server says about it, or we do.
    gathered : bytes or None
        The response's message; None without one, or if it was fed to a `Landing`.
    compressed : bool
        Whether that is as it was sent.
    encoding : str
        How it was compressed then.
    safe_to_retry : bool
        Whether the server cannot have acted on the call.
    """

    cdef readonly int status
    cdef readonly str message
    cdef readonly bytes gathered
    cdef readonly bint compressed
    cdef readonly str encoding
    cdef readonly bint safe_to_retry

    def __init__(self):
        raise TypeError("outcomes are those of calls")


cdef Outcome outcome_of(const http2.Outcome& outcome, BufferSink* gathered):
    """Say what came of a call; raises what the sink threw."""
    cdef Outcome told
    http2.rethrow(outcome)
    told = Outcome.__new__(Outcome)
    told.status = <int>outcome.status
    told.message = outcome.message.decode("utf-8", "replace")
    told.compressed = outcome.compressed
    told.encoding = outcome.encoding.decode("ascii", "replace")
    told.safe_to_retry = outcome.safe_to_retry
    if gathered is not NULL and gathered.complete():
        told.gathered = (<const char*>gathered.buffer().data())[:gathered.buffer().size()]
    return told


cdef http2.Address address_of(str host, str port, bytes unix_path) except *:
    cdef http2.Address address
    address.host = host.encode("idna" if not host.isascii() else "ascii")
    address.port = port.encode("ascii")
    address.unix_path = unix_path
    return address


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
        self.pool = http2.make_pool(
            address_of(host, port, unix_path), authority.encode("ascii"), most, idle_ns)

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
    incoming : Incoming
        A `Landing` is fed as the message arrives, unless that may come compressed; for others it
        is gathered, and returned by `end`.
    metadata : sequence of (str, str)
        As on the wire.
    encoding : str
        How ``outgoing`` is compressed; empty if it is not. The response may be compressed then.
    deadline_ns : int or None
        Nanoseconds of ``time.monotonic_ns()``.
    keepalive : (int, int)
        Silence after which to ping, and how long to wait for the answer, in nanoseconds; 0 is off.
    busy_ns : int
        How long to ask again and again for the answer before sleeping.

    Attributes
    ----------
    cancelled : bool
        Whether somebody has called `cancel`.
    """

    cdef http2.Call* call
    cdef readonly bint cancelled
    cdef MessageSink* landing
    cdef BufferSink* gathered
    cdef object outgoing
    cdef object incoming

    def __cinit__(
        self, Pool pool not None, str path, outgoing, incoming, metadata, str encoding,
        deadline_ns, keepalive, int64_t busy_ns
    ):
        cdef http2.CallSpec spec = spec_of(path, metadata, encoding)
        cdef http2.Keepalive pings
        self.outgoing = outgoing
        self.incoming = incoming
        spec.message_size = outgoing.byte_size
        spec.segments = segments_of(outgoing)
        pings.after_ns, pings.timeout_ns = keepalive
        if isinstance(incoming, Landing) and not encoding:
            self.landing = (<Landing>incoming).sink()
        else:
            self.gathered = new BufferSink()
        self.call = new http2.Call(
            pool.pool, spec, self.landing if self.gathered is NULL else self.gathered,
            http2.kNever if deadline_ns is None else deadline_ns, pings, busy_ns)

    def __dealloc__(self):
        if self.call is not NULL:
            http2.dispose(self.call)
        del self.landing
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
        Outcome

        Raises
        ------
        WireError, InvalidTensor
            What ``incoming`` did not take.
        """
        cdef http2.Outcome outcome
        with nogil:
            outcome = self.call.end()
        self.outgoing = None
        return outcome_of(outcome, self.gathered)

    def cancel(self):
        """Have `run` end the call with CANCELLED. Any thread."""
        self.cancelled = True
        self.call.cancel()


@cython.no_gc_clear  # see Call
cdef class StreamCall:
    """One call with many messages each way, for threads that block.

    Parameters
    ----------
    pool : Pool
        Where its connection is from, which it keeps until it is over.
    incoming : StreamLanding
        Fed the messages as they arrive; this call's alone.
    path, metadata, deadline_ns, keepalive, busy_ns
        As in `Call`.
    """

    cdef http2.StreamCall* call
    cdef StreamLanding incoming
    cdef object outgoing

    def __cinit__(
        self, Pool pool not None, str path, StreamLanding incoming not None, metadata, deadline_ns,
        keepalive, int64_t busy_ns
    ):
        cdef http2.CallSpec spec = spec_of(path, metadata, "")
        cdef http2.Keepalive pings
        spec.streaming = True
        pings.after_ns, pings.timeout_ns = keepalive
        self.incoming = incoming
        self.call = new http2.StreamCall(
            pool.pool, spec, incoming.sink(), http2.kNever if deadline_ns is None else deadline_ns,
            pings, busy_ns)

    def __dealloc__(self):
        if self.call is not NULL:
            http2.dispose(self.call)

    def send(self, outgoing, deadline_ns, bint last):
        """Send one message, whose memory is not borrowed any more when this returns.

        Returns
        -------
        bool
            Whether it was sent. If not, the call is over, perhaps for the deadline has passed.

        Raises
        ------
        RuntimeError
            If another message is being sent, or the last one was.
        BaseException
            What a signal handler raised; the call is cancelled then.
        """
        cdef uint64_t size = outgoing.byte_size
        cdef vector[ConstBuffer] segments = segments_of(outgoing)
        cdef int64_t until = http2.kNever if deadline_ns is None else deadline_ns
        cdef http2.Progress progress
        self.call.post(segments, size, last)
        self.outgoing = outgoing
        try:
            while True:
                with nogil:
                    progress = self.call.send(until)
                if progress == http2.Progress.kDone:
                    break
                PyErr_CheckSignals()
                if http2.monotonic_ns() >= until:
                    self.give_up()
                    return False
        except BaseException:
            self.give_up()
            raise
        self.outgoing = None
        return self.call.sent()

    cdef give_up(self):
        with nogil:
            self.call.give_up()

    def half_close(self):
        """Say that no more messages will be sent. Idempotent."""
        with nogil:
            self.call.half_close()

    def receive(self, list into not None, deadline_ns):
        """Wait for messages.

        Parameters
        ----------
        into : list
            They are appended to it. It is the caller's, for the interpreter may run a signal
            handler as soon as this has returned, and what was returned is lost if that raises.
        deadline_ns : int or None
            Nanoseconds of ``time.monotonic_ns()``.

        Returns
        -------
        bool
            Whether there were messages, or the call is over; False if the deadline has passed.

        Raises
        ------
        BaseException
            What a signal handler raised; the call goes on, and no message was taken.
        """
        cdef int64_t until = http2.kNever if deadline_ns is None else deadline_ns
        cdef http2.Progress progress
        while True:
            with nogil:
                progress = self.call.receive(until)
            PyErr_CheckSignals()
            if self.incoming.take(into):
                return True
            if progress == http2.Progress.kDone and self.over():
                self.incoming.take(into)  # one may have come in between
                return True
            if http2.monotonic_ns() >= until:
                return False

    def over(self):
        """Return whether the call is over; messages may be left to be received."""
        cdef bint over
        with nogil:
            over = self.call.over()
        return over

    def outcome(self):
        """Say what came of the call, which is over; see `Call.end`."""
        return outcome_of(self.call.outcome(), NULL)

    def cancel(self):
        """End the call with CANCELLED, unless it is over. Any thread."""
        with nogil:
            self.call.cancel()
            self.call.over()


cdef class Connecting:
    """A connection being made, without waiting.

    Parameters
    ----------
    host, port, unix_path
        As in `Pool`, but the host is a number: a name would be looked up on a thread.
    """

    cdef http2.Connecting* connecting

    def __cinit__(self, str host, str port, bytes unix_path):
        self.connecting = new http2.Connecting(address_of(host, port, unix_path))

    def __dealloc__(self):
        del self.connecting

    def step(self):
        """Go on, and return whether it is connected. Raises RuntimeError if it cannot be."""
        return self.connecting.step(http2.kNever, 0)

    @property
    def descriptor(self):
        """What to wait for until it can be written to, before the next step."""
        return self.connecting.descriptor()


@cython.no_gc_clear  # what its incoming lends is fed until the call is forgotten
cdef class Exchange:
    """One call on a `Multiplexer`, which makes it.

    Attributes
    ----------
    waiter : object
        The caller's own.
    """

    cdef readonly int32_t id
    cdef public object waiter
    cdef object outgoing
    cdef object incoming
    cdef bint forgotten  # and kept only for its memory
    cdef MessageSink* landing
    cdef BufferSink* gathered

    def __init__(self):
        raise TypeError("exchanges are made by a Multiplexer")

    def __dealloc__(self):
        del self.landing
        del self.gathered

    cdef lend(self, outgoing):
        self.outgoing = outgoing
        if isinstance(outgoing, Gather):
            (<Gather>outgoing).lend()

    cdef give_back(self):
        outgoing, self.outgoing = self.outgoing, None
        if isinstance(outgoing, Gather):
            (<Gather>outgoing).give_back()


@cython.no_gc_clear  # see Call
cdef class Multiplexer:
    """Many calls on one connection, driven by an event loop. One thread.

    Parameters
    ----------
    connecting : Connecting
        Connected.
    authority : str
        What calls carry as ``:authority``.

    Notes
    -----
    A call's memory is held until it is sent, or the connection is broken, even if the call is
    closed before.
    """

    cdef http2.Multiplexer* multiplexer
    cdef dict exchanges  # by number, those too that only lend memory

    def __cinit__(self, Connecting connecting not None, str authority):
        self.exchanges = {}
        self.multiplexer = new http2.Multiplexer(
            connecting.connecting.take(), authority.encode("ascii"))

    def __dealloc__(self):
        if self.multiplexer is not NULL:
            http2.dispose(self.multiplexer)

    @property
    def descriptor(self):
        """What the loop is to watch; -1 after `hang_up`."""
        return self.multiplexer.descriptor()

    @property
    def usable(self):
        """Whether it takes new calls."""
        return self.multiplexer.usable()

    @property
    def most_calls(self):
        """How many calls the server takes at a time; one, until it has said so."""
        return self.multiplexer.most_calls()

    @property
    def settled(self):
        """Whether the server has said by now how many calls it takes."""
        return self.multiplexer.settled()

    @property
    def inherited(self):
        """Whether this is a copy, in a forked child, of the parent's."""
        return self.multiplexer.inherited()

    @property
    def acknowledged_pings(self):
        return self.multiplexer.acknowledged_pings()

    @property
    def received(self):
        """Bytes that have come so far."""
        return self.multiplexer.received()

    def open(self, str path, outgoing, incoming, metadata, str encoding, deadline_ns):
        """Start a call; `flush` sends it.

        Parameters
        ----------
        path, outgoing, incoming, metadata, encoding, deadline_ns
            As in `Call`. Without ``outgoing`` it is a stream, and ``incoming`` a `StreamLanding`.
            The server is told the deadline; keeping it is up to the caller.

        Returns
        -------
        Exchange

        Raises
        ------
        RuntimeError
            If the connection takes no new calls.
        """
        cdef http2.CallSpec spec = spec_of(path, metadata, encoding)
        cdef MessageSink* sink
        cdef int64_t timeout = -1
        cdef Exchange exchange = Exchange.__new__(Exchange)
        exchange.incoming = incoming
        if deadline_ns is not None:
            timeout = max(<int64_t>deadline_ns - http2.monotonic_ns(), 1)
        if outgoing is None:
            spec.streaming = True
            sink = (<StreamLanding?>incoming).sink()
        else:
            spec.message_size = outgoing.byte_size
            spec.segments = segments_of(outgoing)
            if isinstance(incoming, Landing) and not encoding:
                sink = exchange.landing = (<Landing>incoming).sink()
            else:
                exchange.gathered = new BufferSink()
                sink = exchange.gathered
        exchange.id = self.multiplexer.open(spec, sink, timeout)
        if outgoing is not None:
            exchange.lend(outgoing)
        self.exchanges[exchange.id] = exchange
        return exchange

    def send(self, Exchange exchange not None, outgoing):
        """Send one message of a stream, when the one before is sent; `sent` says when it is."""
        cdef vector[ConstBuffer] segments = segments_of(outgoing)
        if exchange.outgoing is not None:
            raise RuntimeError("a stream's messages are sent one after another")
        self.multiplexer.send(exchange.id, segments, outgoing.byte_size)
        exchange.lend(outgoing)

    def sent(self, Exchange exchange not None):
        """Return whether nothing of the call's memory is read any more."""
        self.settle(exchange)
        return exchange.outgoing is None

    cdef settle(self, Exchange exchange):
        if exchange.outgoing is not None and (
            exchange.id not in self.exchanges or not self.multiplexer.lent(exchange.id)
        ):
            exchange.give_back()

    def half_close(self, Exchange exchange not None):
        """Say that a stream has no more messages."""
        self.multiplexer.half_close(exchange.id)

    def messages(self, Exchange exchange not None):
        """Return a stream's messages that have come, as a list."""
        cdef list taken = []
        if (<StreamLanding?>exchange.incoming).take(taken) and exchange.id in self.exchanges:
            self.multiplexer.taken(exchange.id)
        return taken

    def done(self, Exchange exchange not None):
        """Return whether a call is over."""
        return self.multiplexer.done(exchange.id)

    def cancel(self, Exchange exchange not None):
        """End a call with CANCELLED, unless it is over; `flush` tells the server."""
        self.multiplexer.cancel(exchange.id)

    def end(self, Exchange exchange not None):
        """Say what came of a call that is over, and forget it.

        Returns
        -------
        Outcome
        """
        cdef http2.Outcome outcome = self.multiplexer.outcome(exchange.id)
        self.forget(exchange)
        return outcome_of(outcome, exchange.gathered)

    def close(self, Exchange exchange not None):
        """Forget a call, whose end nobody wants to know; cancelled if it is not over."""
        if exchange.id in self.exchanges:
            self.multiplexer.cancel(exchange.id)
            self.forget(exchange)

    cdef forget(self, Exchange exchange):
        exchange.waiter = None
        exchange.forgotten = True
        if exchange.outgoing is None or not self.multiplexer.lent(exchange.id):
            self.multiplexer.close(exchange.id)
            del self.exchanges[exchange.id]
            exchange.give_back()
        # Otherwise news() does it when the last of its memory is sent, or never will be.

    def flush(self):
        """Send what the kernel takes now."""
        with nogil:
            self.multiplexer.flush()

    @property
    def wants_write(self):
        """Whether there is more to send once the kernel takes it."""
        return self.multiplexer.wants_write()

    def receive(self):
        """Take some of what has come; return the exchanges with news.

        News are a message that has come, one that is sent, or a call's end; with the connection,
        all its calls end.
        """
        with nogil:
            self.multiplexer.receive()
        return self.news()

    def news(self):
        """Return the exchanges with news."""
        cdef vector[int32_t] ids = self.multiplexer.news()
        cdef int32_t id
        cdef Exchange exchange
        fresh = []
        for id in ids:
            exchange = self.exchanges.get(id)
            if exchange is None:
                continue
            if not exchange.forgotten:
                fresh.append(exchange)
            elif not self.multiplexer.lent(id):
                self.forget(exchange)
        if self.multiplexer.broken():
            for exchange in [one for one in self.exchanges.values() if (<Exchange>one).forgotten]:
                self.forget(exchange)
        return fresh

    def fail(self, str reason):
        """Break the connection; all calls end with UNAVAILABLE."""
        self.multiplexer.fail(reason.encode("utf-8"))

    @property
    def broken(self):
        """Whether all its calls have ended, for the connection is no more."""
        return self.multiplexer.broken()

    def hang_up(self):
        """Close the socket, which nobody may watch any more."""
        self.multiplexer.hang_up()

    def ping(self):
        """Queue a PING; return how many were answered before."""
        return self.multiplexer.ping()
