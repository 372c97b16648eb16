"""Contenders that send two tensors and get two back, each as `contenders` has it for one."""

from __future__ import annotations

from typing import Any

from contenders import (
    INPUT,
    OUTPUT,
    Addresses,
    Case,
    Contender,
    TritonclientGrpc,
    TritonclientShared,
    TritonFast,
    TritonFastEmpty,
    TritonFastShared,
    TritonFastSharedGrpcio,
    TritonShmClient,
)

_INPUTS = (INPUT, "INPUT1")
_OUTPUTS = (OUTPUT, "OUTPUT1")
_DATATYPES = ("FP32", "INT32")


class _Wire(TritonFast):
    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        assert case.second is not None
        self._second = case.second

    def call(self) -> Any:
        result = self._client.infer(self._model, {INPUT: self._array, "INPUT1": self._second})
        return result[OUTPUT], result["OUTPUT1"]


class _Shared(_Wire, TritonFastShared):
    pass


class _Empty(_Wire, TritonFastEmpty):
    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._second = self._client.empty(self._second.shape, self._second.dtype)
        self._second[...] = case.second


class _SharedGrpcio(_Wire, TritonFastSharedGrpcio):
    pass


class _Tritonclient(TritonclientGrpc):
    def call(self) -> Any:
        tensors = []
        for name, datatype, array in zip(_INPUTS, _DATATYPES, self._case.arrays, strict=True):
            tensors.append(self._library.InferInput(name, array.shape, datatype))
            tensors[-1].set_data_from_numpy(array)
        answer = self._client.infer(self._case.model, tensors)
        return tuple(answer.as_numpy(name) for name in _OUTPUTS)


class _TritonclientShared(TritonclientShared):
    """Both tensors in the one region of their way, one after the other."""

    def call(self) -> Any:
        arrays = self._case.arrays
        self._memory.set_shared_memory_region(self._regions[INPUT], arrays)
        tensors, outputs, offset = [], [], 0
        for index, array in enumerate(arrays):
            tensor = self._library.InferInput(_INPUTS[index], array.shape, _DATATYPES[index])
            tensor.set_shared_memory(self._keys[INPUT], array.nbytes, offset)
            tensors.append(tensor)
            output = self._library.InferRequestedOutput(_OUTPUTS[index])
            output.set_shared_memory(self._keys[OUTPUT], array.nbytes, offset)
            outputs.append(output)
            offset += array.nbytes
        answer = self._client.infer(self._case.model, tensors, outputs=outputs)
        views, offset = [], 0
        for name, array in zip(_OUTPUTS, arrays, strict=True):
            shape = list(answer.get_output(name).shape)
            views.append(
                self._memory.get_contents_as_numpy(
                    self._regions[OUTPUT], array.dtype, shape, offset
                )
            )
            offset += array.nbytes
        return tuple(views)


class _TritonShmClient(TritonShmClient):
    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._inputs = dict(zip(_INPUTS, case.arrays, strict=True))

    def call(self) -> Any:
        answer = self._client.infer_shm(self._model, self._inputs)
        return tuple(answer[name] for name in _OUTPUTS)


SEVERAL: tuple[type[Contender], ...] = (
    _Wire,
    _Shared,
    _Empty,
    _SharedGrpcio,
    _Tritonclient,
    _TritonclientShared,
    _TritonShmClient,
)
"""In the order of the tables."""
