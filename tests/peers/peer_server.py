"""A gRPC server of another make: grpcio's own, with methods of plain bytes, as a program.

    python peer_server.py '{"grpc.max_connection_age_ms": 300}'

serves on a free port of 127.0.0.1, prints the port, and ends when its standard input does. The
argument has further options of grpcio's server. Of KServe's service it has what a client needs that
is to be met by what is between: a server that is up, and models that all give back what they got.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc

from triton_fast.protocol.messages import message_class, method_path

SERVICE = "/peer.Peer/"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_COMPRESSIONS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}


class PeerServer:
    """The program, started by a test, and where it serves."""

    def __init__(self, **options) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps({f"grpc.{k}": v for k, v in options.items()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.target = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def begin_to_stop(self) -> None:
        self._process.stdin.close()

    def stop(self) -> None:
        self.begin_to_stop()
        self._process.stdout.close()
        self._process.wait(60)
        assert self._process.returncode == 0


class _Methods(grpc.GenericRpcHandler):
    """Every method is unary; what it does is its name."""

    def __init__(self) -> None:
        self._begun = threading.Semaphore(0)
        self._given_up = threading.Semaphore(0)

    def service(self, details):
        method = getattr(self, details.method.removeprefix(SERVICE), None)
        return None if method is None else grpc.unary_unary_rpc_method_handler(method)

    def Echo(self, request, context):
        return request

    def Size(self, request, context):
        """Answer with so many bytes."""
        return bytes(range(256)) * (int(request) // 256) + bytes(int(request) % 256)

    def Told(self, request, context):
        """Answer with what the call brought along."""
        headers = [
            [name, {"base64": base64.b64encode(value).decode()}]
            if isinstance(value, bytes)
            else [name, value]
            for name, value in context.invocation_metadata()
        ]
        told = {"headers": headers, "time_left": context.time_remaining(), "size": len(request)}
        return json.dumps(told).encode()

    def Status(self, request, context):
        code, details = json.loads(request)
        context.abort(_CODES[code], details)

    def StatusAfterHeaders(self, request, context):
        context.send_initial_metadata((("x-early", "1"),))
        time.sleep(0.01)  # so that they go by themselves
        self.Status(request, context)

    def StatusWithTrailers(self, request, context):
        code, details = json.loads(request)
        context.set_trailing_metadata((("x-late", "y" * 5000), ("x-late-bin", bytes(range(256)))))
        if code == 0:
            return b"fine"
        return context.abort(_CODES[code], details)

    def StatusAndMessage(self, request, context):
        """Set a status and answer nevertheless."""
        code, details = json.loads(request)
        context.set_code(_CODES[code])
        context.set_details(details)
        return b"an answer"

    def Raise(self, request, context):
        raise RuntimeError(request.decode())

    def Headers(self, request, context):
        """Answer with headers of so many bytes."""
        context.send_initial_metadata((("x-large", "z" * int(request)),))
        return b"fine"

    def Compressed(self, request, context):
        encoding, _, message = request.partition(b":")
        context.set_compression(_COMPRESSIONS[encoding.decode()])
        return message

    def Sleep(self, request, context):
        """Wait so many seconds, or until the client has given up."""
        over = threading.Event()
        self._begun.release()
        if not context.add_callback(over.set) or over.wait(float(request)):
            self._given_up.release()
        return b"slept"

    def Begun(self, request, context):
        """Wait so many seconds until one more call sleeps; answer whether that came."""
        return b"yes" if self._begun.acquire(timeout=float(request)) else b"no"

    def GivenUp(self, request, context):
        """Wait so many seconds until one more call was given up; answer whether that came."""
        return b"yes" if self._given_up.acquire(timeout=float(request)) else b"no"


class _Inference(grpc.GenericRpcHandler):
    """Models of any name, which give back their inputs: twice on a stream, the second time last."""

    def service(self, details):
        for name, method in (("ServerLive", self.live), ("ModelInfer", self.infer)):
            if details.method == method_path(name):
                return self._handler(grpc.unary_unary_rpc_method_handler, name, method)
        if details.method == method_path("ModelStreamInfer"):
            return self._handler(
                grpc.stream_stream_rpc_method_handler, "ModelStreamInfer", self.stream, "ModelInfer"
            )
        return None

    @staticmethod
    def _handler(kind, name, method, request=None):
        return kind(
            method,
            message_class(f"{request or name}Request").FromString,
            message_class(f"{name}Response").SerializeToString,
        )

    def live(self, request, context):
        return message_class("ServerLiveResponse")(live=True)

    def infer(self, request, context):
        answer = message_class("ModelInferResponse")(
            model_name=request.model_name,
            id=request.id,
            raw_output_contents=request.raw_input_contents,
        )
        for given in request.inputs:
            answer.outputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        return answer

    def stream(self, requests, context):
        for request in requests:
            for final in (False, True):
                answer = self.infer(request, context)
                answer.parameters["triton_final_response"].bool_param = final
                yield message_class("ModelStreamInferResponse")(infer_response=answer)


def _main() -> None:
    options = {
        "grpc.max_receive_message_length": -1,
        "grpc.max_send_message_length": -1,
        "grpc.so_reuseport": 0,
        **json.loads(sys.argv[1]),
    }
    server = grpc.server(futures.ThreadPoolExecutor(32), options=list(options.items()))
    server.add_generic_rpc_handlers((_Methods(), _Inference()))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    _main()
