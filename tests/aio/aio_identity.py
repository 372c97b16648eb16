"""A server of another make, which gives its inputs back.

Triton 2.51 crashes now and then when a call is cancelled in the moment in which it is answered.
"""

from __future__ import annotations

from concurrent import futures

import grpc

from triton_fast.protocol.messages import message_class, method_path


class IdentityServer(grpc.GenericRpcHandler):
    """Answers ModelInfer with the inputs, named OUTPUT0 and so on; cancels for the model "gone"."""

    def __init__(self) -> None:
        sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=sizes)
        self._server.add_generic_rpc_handlers((self,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def service(self, details):
        if details.method != method_path("ModelInfer"):
            return None
        return grpc.unary_unary_rpc_method_handler(_answer)


def _answer(encoded: bytes, context: grpc.ServicerContext) -> bytes:
    request = message_class("ModelInferRequest").FromString(encoded)
    if request.model_name == "gone":
        context.abort(grpc.StatusCode.CANCELLED, "gone")
    response = message_class("ModelInferResponse")(model_name=request.model_name, id=request.id)
    for number, tensor in enumerate(request.inputs):
        response.outputs.add(
            name=f"OUTPUT{number}", datatype=tensor.datatype, shape=list(tensor.shape)
        )
    response.raw_output_contents.extend(request.raw_input_contents)
    return response.SerializeToString()
