"""A stream's messages as a channel hands them out, made by the tests of what is done with them."""

from __future__ import annotations

import numpy as np

from triton_fast._core import _wire
from triton_fast.protocol.messages import message_class


def message(request_id, value=None, *, final=False, error=""):
    """Return an answer with a value, if there is one; final None leaves out whether it is."""
    made = message_class("ModelStreamInferResponse")(error_message=error)
    response = made.infer_response
    response.id = request_id
    response.model_name = "m"
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    if value is not None:
        array = np.asarray(value)
        if array.dtype.kind in "SO":
            raw = b"".join(len(one).to_bytes(4, "little") + one for one in array.tolist())
            response.outputs.add(name="y", datatype="BYTES", shape=array.shape)
        else:
            raw = array.astype(np.int64).tobytes()
            response.outputs.add(name="y", datatype="INT64", shape=array.shape)
        response.raw_output_contents.append(raw)
    encoded = made.SerializeToString()
    read = _wire.Response(envelope=True)
    read.begin(len(encoded))
    read.feed(encoded)
    read.finish()
    return read
