"""What the channel tests talk to: a gRPC server of plain bytes, and a TCP relay.

Run as a program, it serves at the target given as the first argument and prints the port.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections import Counter
from concurrent import futures

import grpc
from support.channel_ends import envelope

STATUS_NUMBERS = {code.value[0]: code for code in grpc.StatusCode}


class EchoServer:
    """A grpcio server without messages of its own: methods by name, bytes in and out.

    Tests make things happen in an order by what it counts (see `saw`), and by ``Hold``, whose calls
    are answered when somebody lets them go, and not before.
    """

    def __init__(self, address: str = "127.0.0.1:0", credentials=None) -> None:
        self.calls: list[str] = []
        self.counts: Counter[str] = Counter()
        self._changed = threading.Condition()  # guards the counts, and what follows
        self._turn = 0  # how often calls were let go
        self._stopping = False
        self._server = grpc.server(
            futures.ThreadPoolExecutor(128),  # each call that is held takes one
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers((_Methods(self),))
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._server.stop(None).wait()

    def wait(self) -> None:
        self._server.wait_for_termination()

    def saw(self, what: str, count: int = 1, patience: float = 30.0) -> bool:
        """Wait until something has happened so often; say whether it has.

        ``held``: a call of ``Hold``, or a message of ``StreamHold``, has arrived. ``given up``: its
        client has ended the call. ``stream ended``: a stream is over.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self.counts[what] >= count, patience)

    def let_go(self) -> None:
        """Answer the calls that are held now."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def count(self, what: str) -> None:
        with self._changed:
            self.counts[what] += 1
            self._changed.notify_all()

    def answer(self, method: str, request: bytes, context) -> bytes:
        self.calls.append(method)
        if method == "Hold":
            self._hold(context)
            return b"held"
        if method == "LetGo":
            self.let_go()
        if method == "Saw":  # "what count"
            what, _, count = request.decode().rpartition(" ")
            return b"yes" if self.saw(what, int(count)) else b"no"
        if method == "Status":
            number, _, details = request.decode().partition(":")
            context.abort(STATUS_NUMBERS[int(number)], details)
        if method == "Size":
            return bytes(int(request))
        if method == "Headers":
            told = [
                [name, list(value) if isinstance(value, bytes) else value]
                for name, value in context.invocation_metadata()
            ]
            return json.dumps(told).encode()
        if method == "Who":
            return json.dumps(
                {k: [v.decode() for v in vs] for k, vs in context.auth_context().items()}
            ).encode()
        return request

    def _hold(self, context) -> None:
        over = []

        def end() -> None:
            with self._changed:
                over.append(True)
                self._changed.notify_all()

        if not context.add_callback(end):
            end()
        with self._changed:
            turn = self._turn
            self.counts["held"] += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: over or self._stopping or self._turn > turn)
            if over:
                self.counts["given up"] += 1
                self._changed.notify_all()

    def stream(self, method: str, requests, context):
        """Answer a call of many messages: what each method does is in its name."""
        self.calls.append(method)
        if not context.add_callback(lambda: self.count("stream ended")):
            self.count("stream ended")
        if method == "StreamHeaders":
            told = [[name, value] for name, value in context.invocation_metadata()]
            yield envelope(json.dumps(told))
        for request in requests:
            if method == "StreamCount":
                count, _, size = request.decode().partition(" ")
                for number in range(int(count)):
                    self.count("streamed")  # given to grpcio, which waits for room
                    yield envelope(str(number).ljust(int(size or 0)))
            elif method == "StreamStatus":
                number, _, details = request.decode().partition(":")
                context.abort(STATUS_NUMBERS[int(number)], details)
            elif method == "StreamHold":  # and reads nothing meanwhile
                self._hold(context)
                yield envelope("held")
            elif method == "StreamOne":
                yield envelope("one")
                return
            else:
                yield request
        if method == "StreamEcho":
            yield envelope("half-closed")


class _Methods(grpc.GenericRpcHandler):
    def __init__(self, server: EchoServer) -> None:
        self._server = server

    def service(self, details):
        method = details.method.rsplit("/", 1)[-1]
        if method.startswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._server.stream(method, requests, context)
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._server.answer(method, request, context)
        )


class Relay:
    """A TCP relay that counts connections and bytes, and can cut them, or keep what they send."""

    def __init__(self, port: int) -> None:
        self.accepted = 0
        self.ended = 0  # by the client
        self.bytes_up = 0
        self.frozen = False  # whether nothing is passed on any more
        self._dead: set[socket.socket] = set()  # from which nothing is
        self._upstream = ("127.0.0.1", port)
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        for end in list(self._sockets):  # and none that is accepted from now on
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed by its peer

    def forget(self) -> None:
        """Pass nothing on any more of the connections that there are, as a router may."""
        self._dead.update(self._sockets)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                client.close()
                continue
            self.accepted += 1
            self._sockets += [client, server]
            for source, sink, up in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pump, args=(source, sink, up), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        try:
            while chunk := source.recv(1 << 16):
                self.bytes_up += len(chunk) if up else 0
                if not self.frozen and source not in self._dead:
                    sink.sendall(chunk)
            self.ended += up
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.ended += up
            return  # cut


if __name__ == "__main__":
    _server = EchoServer(sys.argv[1])
    print(_server.port, flush=True)
    _server.wait()
