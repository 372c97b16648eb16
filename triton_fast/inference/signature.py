"""What a model takes and gives, and the check of a call against it before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InvalidTensor
from ..protocol.datatypes import DATATYPES, dtype_of

if TYPE_CHECKING:
    from ..management.metadata import ModelConfig, ModelMetadata, TensorMetadata
    from .tensor import InputTensor

__all__ = ["Signature"]


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's inputs and outputs by name.

    Parameters
    ----------
    model_name : str
        Whose they are.
    inputs, outputs : mapping of str to TensorMetadata
        Shapes have -1 where any length goes, and the batch dimension in front if the model has one.
    optional : frozenset of str or None
        Inputs that a call may leave out; None if the server did not say.
    unchecked : frozenset of str
        Inputs whose shape cannot be judged from the metadata.
    max_batch_size : int or None
        0 if the model has no batch dimension; None if the server did not say.
    advisory : bool
        Whether the server may take what is not in it, so that nothing is refused by it: it is no
        Triton, which holds calls against it, and to others it is advice.
    """

    model_name: str
    inputs: Mapping[str, TensorMetadata]
    outputs: Mapping[str, TensorMetadata]
    optional: frozenset[str] | None = None
    unchecked: frozenset[str] = frozenset()
    max_batch_size: int | None = None
    advisory: bool = False

    @classmethod
    def from_metadata(
        cls, metadata: ModelMetadata, config: ModelConfig | None = None
    ) -> Signature | None:
        """Return the signature that a server's answers amount to.

        Parameters
        ----------
        metadata : ModelMetadata
            Names, datatypes and shapes.
        config : ModelConfig, optional
            Tells in addition which inputs are optional and how large a batch may be.

        Returns
        -------
        Signature or None
            None if the server named no inputs: some KServe servers answer so for every model.
        """
        if not metadata.inputs:
            return None
        optional = None
        unchecked = frozenset[str]()
        if config is not None:
            optional = frozenset(tensor.name for tensor in config.inputs if tensor.optional)
            # A shape tensor's batch dimension is not in its shape.
            unchecked = frozenset(
                tensor.name
                for tensor in getattr(config.message, "input", ())
                if tensor.is_shape_tensor
            )
        return cls(
            metadata.name,
            {tensor.name: tensor for tensor in metadata.inputs},
            {tensor.name: tensor for tensor in metadata.outputs},
            optional,
            unchecked,
            None if config is None else config.max_batch_size,
        )

    def check(self, inputs: Iterable[InputTensor], outputs: Iterable[str]) -> None:
        """Refuse a call that the server would refuse.

        Parameters
        ----------
        inputs : iterable of InputTensor
            What is to be sent.
        outputs : iterable of str
            Names of the outputs that are asked for.

        Raises
        ------
        InvalidTensor
            For the first thing that is wrong: a name, a datatype, a shape, a missing input. It
            says what was expected and what came.
        """
        if self.advisory:
            return
        given = set()
        for tensor in inputs:
            given.add(tensor.name)
            self._check_input(tensor)
        if self.optional is not None:
            missing = [name for name in self.inputs if name not in given | self.optional]
            if missing:
                raise InvalidTensor(
                    f"model {self.model_name!r} also takes {_names(missing)}, and the call has "
                    + (f"only {_names(sorted(given))}" if given else "no inputs")
                )
        for name in outputs:
            if name not in self.outputs:
                raise InvalidTensor(
                    f"model {self.model_name!r} has no output {name!r}; it gives "
                    f"{_names(self.outputs)}"
                )

    def _check_input(self, tensor: InputTensor) -> None:
        name, datatype, shape = tensor[:3]
        expected = self.inputs.get(name)
        if expected is None:
            raise InvalidTensor(
                f"model {self.model_name!r} has no input {name!r}; it takes {_names(self.inputs)}"
            )
        if datatype != expected.datatype:
            raise InvalidTensor(
                f"input {name!r} of model {self.model_name!r} is {expected.datatype}, and the "
                f"tensor is {datatype}{_conversion(datatype, expected.datatype)}"
            )
        if name in self.unchecked:
            return
        wanted = expected.shape
        if len(shape) != len(wanted) or any(
            want not in {-1, have} for want, have in zip(wanted, shape, strict=True)
        ):
            raise InvalidTensor(
                f"input {name!r} of model {self.model_name!r} has shape {list(wanted)} "
                f"(-1: any length), and the tensor has {list(shape)}"
            )
        if self.max_batch_size and shape[0] > self.max_batch_size:
            raise InvalidTensor(
                f"input {name!r}: model {self.model_name!r} takes batches of up to "
                f"{self.max_batch_size}, and the tensor's first dimension is {shape[0]}"
            )


def _conversion(datatype: str, wanted: str) -> str:
    """Say how to make one datatype of another, where numpy does it."""
    if "BYTES" in (datatype, wanted) or wanted == "BF16" or wanted not in DATATYPES:
        return ""
    return f"; array.astype(numpy.{dtype_of(wanted).name}) makes it so"


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
