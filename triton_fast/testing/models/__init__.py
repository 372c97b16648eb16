"""The built-in test models: what each is called, and its place in a model repository.

Owns the configurations. All models but one run in the C++ backends of
`triton_fast.testing.backends`, so that they need neither a Python in the server nor a process each;
the code of the Python-backend model lies beside this file and is copied.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triton_fast.errors import InvalidOption

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ["PYTHON_TEST_MODELS", "TEST_MODELS", "write_test_models"]

_IDENTITY = "triton_fast_identity"
_COMPUTING = "triton_fast_computing"
_PYTHON = "python"

# Triton's name of a datatype on the wire, and its name in a model's configuration.
_CONFIG_TYPES = {
    "BOOL": "TYPE_BOOL",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "FP16": "TYPE_FP16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BF16": "TYPE_BF16",
    "BYTES": "TYPE_STRING",
}


@dataclass(frozen=True)
class _Signature:
    """One tensor of a model's configuration."""

    name: str
    datatype: str
    dims: tuple[int, ...] = (-1,)
    optional: bool = False

    def config(self) -> str:
        dims = ", ".join(map(str, self.dims))
        optional = ", optional: true" if self.optional else ""
        return (
            f'  {{ name: "{self.name}", data_type: {_CONFIG_TYPES[self.datatype]}, '
            f"dims: [ {dims} ]{optional} }}"
        )


@dataclass(frozen=True)
class _Model:
    """One model; a Python-backend model's code is beside this file, under the model's name."""

    inputs: tuple[_Signature, ...]
    outputs: tuple[_Signature, ...]
    backend: str = _IDENTITY
    max_batch_size: int = 0
    instances: int = 1
    more: str = ""

    def config(self) -> str:
        inputs = ",\n".join(tensor.config() for tensor in self.inputs)
        outputs = ",\n".join(tensor.config() for tensor in self.outputs)
        return (
            f'backend: "{self.backend}"\n'
            f"max_batch_size: {self.max_batch_size}\n"
            f"input [\n{inputs}\n]\n"
            f"output [\n{outputs}\n]\n"
            # Without this, a server with a GPU would make one instance for each GPU.
            f"instance_group [ {{ kind: KIND_CPU, count: {self.instances} }} ]\n"
            f"{self.more}"
        )


def _identity(
    *datatypes: str,
    dims: tuple[int, ...] = (-1,),
    max_batch_size: int = 0,
    optional_from: int | None = None,
    more: str = "",
) -> _Model:
    first_optional = len(datatypes) if optional_from is None else optional_from
    return _Model(
        inputs=tuple(
            _Signature(f"INPUT{index}", datatype, dims, optional=index >= first_optional)
            for index, datatype in enumerate(datatypes)
        ),
        outputs=tuple(
            _Signature(f"OUTPUT{index}", datatype, dims) for index, datatype in enumerate(datatypes)
        ),
        max_batch_size=max_batch_size,
        more=more,
    )


def _add_sub(backend: str) -> _Model:
    return _Model(
        inputs=(_Signature("INPUT0", "FP32", (16,)), _Signature("INPUT1", "FP32", (16,))),
        outputs=(_Signature("OUTPUT0", "FP32", (16,)), _Signature("OUTPUT1", "FP32", (16,))),
        backend=backend,
        max_batch_size=8,
    )


_DELAY = _Signature("DELAY", "FP32", (1,))
_LATE = _Signature("LATE", "FP32", (1,))
# A request can shorten the queue's timeout, not lengthen it, so there must be one to begin with.
_QUEUE = """\
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {
    default_timeout_microseconds: 600000000
    allow_timeout_override: true
    max_queue_size: 4
  }
}
"""

_MODELS: dict[str, _Model] = {
    **{f"identity_{datatype.lower()}": _identity(datatype) for datatype in _CONFIG_TYPES},
    "identity_cpp": _identity("FP32"),
    "identity_cpp_bytes": _identity("BYTES"),
    "identity_rank3": _identity("FP32", dims=(-1, -1, -1)),
    "identity_mixed": _identity("FP32", "INT32", "BYTES"),
    "identity_batched": _identity("FP32", max_batch_size=8, more="dynamic_batching { }\n"),
    "identity_optional": _identity("FP32", "INT32", max_batch_size=8, optional_from=1),
    "slow": _Model(
        inputs=(_Signature("INPUT0", "FP32"), _DELAY),
        outputs=(_Signature("OUTPUT0", "FP32"),),
        instances=8,
    ),
    "late": _Model(
        inputs=(_Signature("INPUT0", "FP32"), _LATE),
        outputs=(_Signature("OUTPUT0", "FP32"),),
        instances=4,
    ),
    "queued": _Model(
        inputs=(_Signature("INPUT0", "FP32"), _DELAY),
        outputs=(_Signature("OUTPUT0", "FP32"),),
        max_batch_size=1,
        more=_QUEUE,
    ),
    "failing": _Model(
        inputs=(
            _Signature("FAIL_MESSAGE", "BYTES", (1,)),
            _Signature("FAIL_CODE", "INT32", (1,), optional=True),
        ),
        outputs=(_Signature("OUTPUT0", "BYTES"),),
    ),
    "add_sub": _add_sub(_COMPUTING),
    "variable": _Model(
        inputs=(_Signature("ROW", "FP32"), _Signature("COUNT", "INT32", (1,))),
        outputs=(_Signature("TWICE", "FP32"), _Signature("TILED", "FP32", (-1, -1))),
        backend=_COMPUTING,
    ),
    "strings": _Model(
        inputs=(_Signature("TEXT", "BYTES"),),
        outputs=(_Signature("UPPER", "BYTES"), _Signature("LENGTH", "INT32")),
        backend=_COMPUTING,
    ),
    "text_numbers": _Model(
        inputs=(_Signature("TEXT", "BYTES"), _Signature("VALUE", "FP64")),
        outputs=(_Signature("PARSED", "FP64"), _Signature("WRITTEN", "BYTES")),
        backend=_COMPUTING,
    ),
    "add_sub_python": _add_sub(_PYTHON),
}

PYTHON_TEST_MODELS = tuple(name for name, model in _MODELS.items() if model.backend == _PYTHON)
"""The names of the built-in models that run in the Python backend."""

TEST_MODELS = tuple(name for name in _MODELS if name not in PYTHON_TEST_MODELS)
"""The names of all other built-in models."""


def write_test_models(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> Path:
    """Write built-in test models into a model repository.

    Parameters
    ----------
    folder : path
        The model repository; made if it is not there. Models in it that have other names stay.
    names : iterable of str, optional
        Which models, of `TEST_MODELS` and `PYTHON_TEST_MODELS`; `TEST_MODELS` when left out.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    InvalidOption
        If there is no such model.

    Notes
    -----
    The models, all tensors of shape ``[-1]`` where nothing else is said:

    ``identity_<datatype>``
        ``INPUT0`` comes back as ``OUTPUT0``; one for each datatype, ``identity_bool`` to
        ``identity_bytes``. ``identity_cpp`` is the FP32 one and ``identity_cpp_bytes`` the BYTES
        one under the names that benchmarks use.
    ``identity_rank3``
        FP32, shape ``[-1, -1, -1]``.
    ``identity_mixed``
        FP32, INT32 and BYTES: three inputs, three outputs.
    ``identity_batched``
        FP32, ``max_batch_size`` 8, dynamic batching.
    ``identity_optional``
        FP32, and an INT32 ``INPUT1`` that may be left out (``OUTPUT1`` is then missing too);
        ``max_batch_size`` 8.
    ``slow``
        An identity (FP32) that takes ``DELAY`` (FP32, ``[1]``) seconds and notices that it was
        cancelled; 8 calls at a time.
    ``queued``
        The same with ``max_batch_size`` 1, one call at a time, two priorities and a queue of 4:
        for queue timeouts and full queues.
    ``failing``
        Fails with the text ``FAIL_MESSAGE`` (BYTES, ``[1]``), and the TRITONSERVER_Error_Code
        ``FAIL_CODE`` (INT32, ``[1]``, may be left out: INTERNAL).
    ``add_sub``
        ``INPUT0`` + ``INPUT1`` and ``INPUT0`` - ``INPUT1``, FP32, ``[16]``, ``max_batch_size`` 8.
    ``variable``
        ``ROW`` (FP32) twice over as ``TWICE``, and ``COUNT`` (INT32, ``[1]``) times as the rows of
        ``TILED`` (``[-1, -1]``).
    ``strings``
        ``TEXT`` (BYTES) with ASCII letters in upper case, ``UPPER``, and the bytes that each has,
        ``LENGTH`` (INT32).
    ``text_numbers``
        ``TEXT`` (BYTES) as numbers, ``PARSED`` (FP64), and ``VALUE`` (FP64) as text, ``WRITTEN``.

    ``add_sub_python``
        The same as ``add_sub`` in the Python backend, one more process; only when it is named.

    All up to ``failing`` also answer with the request's own parameters (and, with
    ``--grpc-header-forward-pattern``, with its headers) as response parameters.
    """
    repository = Path(folder)
    chosen = TEST_MODELS if names is None else tuple(names)
    unknown = [name for name in chosen if name not in _MODELS]
    if unknown:
        raise InvalidOption(
            f"no built-in test model is called {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(_MODELS)}"
        )
    repository.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        model = _MODELS[name]
        version = repository / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (repository / name / "config.pbtxt").write_text(model.config(), encoding="utf-8")
        if model.backend == _PYTHON:
            shutil.copyfile(Path(__file__).with_name(f"{name}.py"), version / "model.py")
    return repository
