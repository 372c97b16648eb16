"""tritonclient as the tests of the server and its models call it."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator

import tritonclient.grpc
from tritonclient.utils import np_to_triton_dtype


def tensors(inputs):
    """Make tritonclient's inputs of numpy arrays, or of pairs of datatype and array."""
    made = []
    for name, value in inputs.items():
        datatype, array = value if isinstance(value, tuple) else (None, value)
        tensor = tritonclient.grpc.InferInput(
            name, list(array.shape), datatype or np_to_triton_dtype(array.dtype)
        )
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def infer(client, model, inputs, *, outputs=None, **options):
    """Send numpy arrays (or a pair of datatype and array) through tritonclient."""
    wanted = outputs and [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
    return client.infer(model, tensors(inputs), outputs=wanted, **options)


class Stream:
    """One stream of tritonclient's: requests go in, answers and errors come out as they come."""

    def __init__(self, client: tritonclient.grpc.InferenceServerClient) -> None:
        self._client = client
        self._answers: queue.SimpleQueue = queue.SimpleQueue()

    def send(self, model, inputs, request_id="1", **options):
        """Send one request."""
        self._client.async_stream_infer(
            model,
            tensors(inputs),
            request_id=request_id,
            enable_empty_final_response=True,
            **options,
        )

    def receive(self):
        """Return the next answer, or raise the next error."""
        result, error = self._answers.get(timeout=20)
        if error is not None:
            raise error
        return result

    def answers(self):
        """Return the answers to the one request that is on its way; the last has the final flag."""
        found = [self.receive()]
        while not is_final(found[-1]):
            found.append(self.receive())
        return found

    def cancel(self):
        """End the stream, and with it every request on it."""
        self._client.stop_stream(cancel_requests=True)


@contextlib.contextmanager
def stream(url: str) -> Iterator[Stream]:
    """Open a stream with a client of its own, for a client has only one."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        opened = Stream(client)
        client.start_stream(lambda result, error: opened._answers.put((result, error)))
        yield opened


def is_final(result):
    """Whether an answer has the final flag."""
    return result.get_response().parameters["triton_final_response"].bool_param


def request_id(result):
    """Return the id of the request that an answer is for."""
    return result.get_response().id
