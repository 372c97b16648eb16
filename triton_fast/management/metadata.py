"""What a server says of itself and of its models, as plain values.

Owns the types that the management calls return, and how each is made from its message. Immutable,
but for the whole message that a `ModelConfig` carries. Reads messages without importing protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..protocol import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

__all__ = [
    "ModelConfig",
    "ModelInput",
    "ModelMetadata",
    "ModelOutput",
    "ServerMetadata",
    "TensorMetadata",
]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Which server this is.

    Parameters
    ----------
    name : str
        ``"triton"``, unless the server was started under another name.
    version : str
        The server's own version, ``"2.51.0"``.
    extensions : tuple of str
        Protocol extensions that the server was built with. One that is listed may still be
        switched off.

    Source
    ------
    protos/inference.proto, ServerMetadataResponse
    """

    name: str
    version: str
    extensions: tuple[str, ...]

    @classmethod
    def from_message(cls, message: Message) -> ServerMetadata:
        """Take the values out of a ``ServerMetadataResponse``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Read during the call only.

        Returns
        -------
        ServerMetadata

        Source
        ------
        protos/inference.proto, ServerMetadataResponse
        """
        fields: Any = message
        return cls(fields.name, fields.version, tuple(fields.extensions))


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output of a model, as a request or a response has it.

    Parameters
    ----------
    name : str
        The tensor's name.
    datatype : str
        Triton's spelling, ``"FP32"``.
    shape : tuple of int
        -1 where any length goes. The batch dimension is included, if the model batches.

    Source
    ------
    protos/inference.proto, ModelMetadataResponse.TensorMetadata
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def from_message(cls, message: Message) -> TensorMetadata:
        """Take the values out of a ``ModelMetadataResponse.TensorMetadata``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Read during the call only.

        Returns
        -------
        TensorMetadata

        Source
        ------
        protos/inference.proto, ModelMetadataResponse.TensorMetadata
        """
        fields: Any = message
        return cls(fields.name, fields.datatype, tuple(fields.shape))


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives.

    Parameters
    ----------
    name : str
        The model's name.
    versions : tuple of str
        Versions that are ready.
    platform : str
        What the model is made for, ``"onnxruntime_onnx"`` say; may be empty.
    inputs, outputs : tuple of TensorMetadata
        In the server's order.

    Source
    ------
    protos/inference.proto, ModelMetadataResponse
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]

    @classmethod
    def from_message(cls, message: Message) -> ModelMetadata:
        """Take the values out of a ``ModelMetadataResponse``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Read during the call only.

        Returns
        -------
        ModelMetadata

        Source
        ------
        protos/inference.proto, ModelMetadataResponse
        """
        fields: Any = message
        return cls(
            fields.name,
            tuple(fields.versions),
            fields.platform,
            tuple(TensorMetadata.from_message(tensor) for tensor in fields.inputs),
            tuple(TensorMetadata.from_message(tensor) for tensor in fields.outputs),
        )


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input, as a model's configuration has it.

    Parameters
    ----------
    name : str
        The tensor's name.
    datatype : str
        Triton's spelling, ``"FP32"``. ``"TYPE_"`` and a number, if the server has a datatype that
        this version of triton_fast does not know; ``"INVALID"`` if the configuration has none.
    dims : tuple of int
        -1 where any length goes. Without the batch dimension, if the model batches.
    optional : bool
        Whether a request may leave it out.
    allow_ragged_batch : bool
        Whether requests with other lengths than each other may be batched together.

    Source
    ------
    protos/model_config.proto, ModelInput
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    allow_ragged_batch: bool = False

    @classmethod
    def from_message(cls, message: Message) -> ModelInput:
        """Take the values out of a ``ModelInput``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Read during the call only.

        Returns
        -------
        ModelInput

        Source
        ------
        protos/model_config.proto, ModelInput
        """
        fields: Any = message
        return cls(
            fields.name,
            _datatype(message),
            tuple(fields.dims),
            fields.optional,
            fields.allow_ragged_batch,
        )


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """An output, as a model's configuration has it.

    Parameters
    ----------
    name : str
        The tensor's name.
    datatype : str
        As in `ModelInput`.
    dims : tuple of int
        -1 where any length may come. Without the batch dimension, if the model batches.
    label_filename : str
        File in the model's folder on the server that names the classes; empty if there is none.

    Source
    ------
    protos/model_config.proto, ModelOutput
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    label_filename: str = ""

    @classmethod
    def from_message(cls, message: Message) -> ModelOutput:
        """Take the values out of a ``ModelOutput``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Read during the call only.

        Returns
        -------
        ModelOutput

        Source
        ------
        protos/model_config.proto, ModelOutput
        """
        fields: Any = message
        return cls(fields.name, _datatype(message), tuple(fields.dims), fields.label_filename)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How the server is set up to run a model: what a client asks most, and the whole beside it.

    Parameters
    ----------
    name : str
        The model's name.
    platform, backend : str
        What runs the model; either may be empty.
    max_batch_size : int
        Above 0, tensors have one more dimension than ``dims``, in front, of at most this length;
        0 if the model does not batch.
    inputs : tuple of ModelInput
        Inputs, in the configuration's order.
    outputs : tuple of ModelOutput
        Outputs, in the configuration's order.
    decoupled : bool
        Whether a request may get none, one or many responses; such a model needs a stream.
    dynamic_batching : bool
        Whether requests are batched together. ``priority`` and ``queue_timeout`` act only then.
    sequence_batching : bool
        Whether requests belong to sequences: each then needs a sequence id.
    ensemble : bool
        Whether the model is a pipeline of other models.
    response_cache : bool
        Whether equal requests may be answered from the server's cache.
    parameters : mapping of str to str
        The backend's settings. Read only.
    message : google.protobuf.message.Message
        The whole ``ModelConfig`` message, for everything else. Shared with whoever made this:
        read it, do not change it.

    Notes
    -----
    Can be copied and pickled. Equal if the whole messages are.

    Source
    ------
    protos/model_config.proto, ModelConfig
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]
    decoupled: bool
    dynamic_batching: bool
    sequence_batching: bool
    ensemble: bool
    response_cache: bool
    parameters: Mapping[str, str] = field(hash=False)
    message: Message = field(hash=False, repr=False)

    @classmethod
    def from_message(cls, message: Message) -> ModelConfig:
        """Take the values out of a ``ModelConfig``: the ``config`` of a ``ModelConfigResponse``.

        Parameters
        ----------
        message : google.protobuf.message.Message
            Kept, as the result's ``message``.

        Returns
        -------
        ModelConfig

        Source
        ------
        protos/model_config.proto, ModelConfig
        """
        fields: Any = message
        scheduling = fields.WhichOneof("scheduling_choice")
        return cls(
            name=fields.name,
            platform=fields.platform,
            backend=fields.backend,
            max_batch_size=fields.max_batch_size,
            inputs=tuple(ModelInput.from_message(tensor) for tensor in fields.input),
            outputs=tuple(ModelOutput.from_message(tensor) for tensor in fields.output),
            decoupled=fields.model_transaction_policy.decoupled,
            dynamic_batching=scheduling == "dynamic_batching",
            sequence_batching=scheduling == "sequence_batching",
            ensemble=scheduling == "ensemble_scheduling",
            response_cache=fields.response_cache.enable,
            parameters=MappingProxyType(
                {key: value.string_value for key, value in fields.parameters.items()}
            ),
            message=message,
        )

    def __reduce__(self) -> tuple[Callable[[bytes], ModelConfig], tuple[bytes]]:
        # Classes of a private pool have no module that pickle could find them in.
        return _config_from_bytes, (self.message.SerializeToString(),)


def _config_from_bytes(encoded: bytes) -> ModelConfig:
    return ModelConfig.from_message(messages.decode("ModelConfig", encoded))


def _datatype(message: Message) -> str:
    """Spell a configuration's ``data_type`` as requests do."""
    fields: Any = message
    number: int = fields.data_type
    # Asked of the message itself, so that the datatypes are listed in protos/ only.
    known = fields.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number.get(number)
    if known is None:
        return f"TYPE_{number}"
    name: str = known.name.removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
