"""The built-in test models by name, and what each one's configuration says.

Their behaviour is told where users read it, in `triton_fast.testing.write_test_models`. All but a
few run in the C++ backends of `triton_fast.testing.backends`, so that they need neither a Python in
the server nor a process each.
"""

from __future__ import annotations

from dataclasses import replace

from triton_fast.testing.model_config import CONFIG_TYPES, ENSEMBLE, PYTHON, Model, Signature

__all__ = ["MODELS"]

_IDENTITY = "triton_fast_identity"
_COMPUTING = "triton_fast_computing"
_CANCELLABLE = "triton_fast_cancellable"
_SEQUENCES = "triton_fast_sequences"


def _identity(
    *datatypes: str,
    dims: tuple[int, ...] = (-1,),
    max_batch_size: int = 0,
    optional_from: int | None = None,
    more: str = "",
) -> Model:
    first_optional = len(datatypes) if optional_from is None else optional_from
    return Model(
        inputs=tuple(
            Signature(f"INPUT{index}", datatype, dims, optional=index >= first_optional)
            for index, datatype in enumerate(datatypes)
        ),
        outputs=tuple(
            Signature(f"OUTPUT{index}", datatype, dims) for index, datatype in enumerate(datatypes)
        ),
        backend=_IDENTITY,
        max_batch_size=max_batch_size,
        more=more,
    )


def _add_sub(backend: str) -> Model:
    return Model(
        inputs=(Signature("INPUT0", "FP32", (16,)), Signature("INPUT1", "FP32", (16,))),
        outputs=(Signature("OUTPUT0", "FP32", (16,)), Signature("OUTPUT1", "FP32", (16,))),
        backend=backend,
        max_batch_size=8,
    )


_DELAY = Signature("DELAY", "FP32", (1,))
_LATE = Signature("LATE", "FP32", (1,))
_DECOUPLED = "model_transaction_policy { decoupled: true }\n"


def _queue(max_queue_size: int) -> str:
    # A request can shorten the queue's timeout, not lengthen it, so there must be one to begin
    # with. A size of 0 is none.
    return f"""\
dynamic_batching {{
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {{
    default_timeout_microseconds: 600000000
    allow_timeout_override: true
    max_queue_size: {max_queue_size}
  }}
}}
"""


def _delayed(max_batch_size: int, max_queue_size: int) -> Model:
    return Model(
        inputs=(Signature("INPUT0", "FP32"), replace(_DELAY, optional=True)),
        outputs=(Signature("OUTPUT0", "FP32"),),
        backend=_CANCELLABLE,
        max_batch_size=max_batch_size,
        more=_queue(max_queue_size),
        by_default=False,
    )


def _accumulate(strategy: str, id_type: str, instances: int) -> Model:
    controls = ",\n".join(
        f'    {{ name: "{name}" control [ {{ kind: CONTROL_SEQUENCE_{name} {values} }} ] }}'
        for name, values in {
            "START": "int32_false_true: [ 0, 1 ]",
            "END": "int32_false_true: [ 0, 1 ]",
            "READY": "int32_false_true: [ 0, 1 ]",
            "CORRID": f"data_type: {CONFIG_TYPES[id_type]}",
        }.items()
    )
    return Model(
        inputs=(Signature("INPUT", "INT32", (1,)),),
        outputs=(Signature("OUTPUT", "INT32", (1,)), Signature("ENDED", "INT32", (1,))),
        backend=_SEQUENCES,
        instances=instances,
        more=f"""\
sequence_batching {{
  max_sequence_idle_microseconds: 3000000
  control_input [
{controls}
  ]
  {strategy}
}}
""",
        by_default=False,
    )


def _classifier(labels: str) -> Model:
    return Model(
        inputs=(Signature("INPUT0", "FP32"),),
        outputs=(Signature("OUTPUT0", "FP32", labels="labels.txt" if labels else ""),),
        backend=_IDENTITY,
        max_batch_size=8,
        by_default=False,
        files={"labels.txt": labels} if labels else {},
    )


def _generates_text(
    inputs: tuple[Signature, ...],
    outputs: tuple[Signature, ...],
    *,
    decoupled: bool,
    max_batch_size: int = 0,
) -> Model:
    return Model(
        inputs=inputs,
        outputs=outputs,
        backend=PYTHON,
        max_batch_size=max_batch_size,
        more=_DECOUPLED if decoupled else "",
        by_default=False,
        code="text_generation",
    )


def _one(datatype: str, *names: str, optional: bool = True) -> tuple[Signature, ...]:
    return tuple(Signature(name, datatype, (1,), optional=optional) for name in names)


_PROMPT = _one("BYTES", "prompt", optional=False)
_TEXT = (Signature("text", "BYTES", (1,)),)
# In the order of the vLLM backend's auto_complete_config().
_VLLM_INPUTS = (
    *_one("BYTES", "text_input", optional=False),
    *_one("BOOL", "stream"),
    *_one("BYTES", "sampling_parameters"),
    *_one("BOOL", "exclude_input_in_output", "return_finish_reason", "return_cumulative_logprob"),
    *_one("BOOL", "return_logprobs", "return_num_input_tokens", "return_num_output_tokens"),
)
_VLLM_OUTPUTS = (
    Signature("text_output", "BYTES"),
    Signature("finish_reason", "BYTES"),
    Signature("cumulative_logprob", "FP32"),
    Signature("logprobs", "BYTES"),
    Signature("num_input_tokens", "UINT32", (1,)),
    Signature("num_output_tokens", "UINT32"),
)
# The ensemble's inputs but for those of LoRA, prompt tables, encoders and guided decoding; and
# random_seed, which seed was called before 2025.
_TENSORRTLLM_INPUTS = (
    *_one("BYTES", "text_input", optional=False),
    *_one("INT32", "max_tokens", optional=False),
    *_one("INT32", "num_return_sequences"),
    Signature("bad_words", "BYTES", optional=True),
    Signature("stop_words", "BYTES", optional=True),
    *_one("BOOL", "exclude_input_in_output"),
    *_one("INT32", "end_id", "pad_id", "top_k"),
    *_one("FP32", "top_p", "temperature", "length_penalty", "repetition_penalty"),
    *_one("INT32", "min_tokens"),
    *_one("FP32", "presence_penalty", "frequency_penalty"),
    *_one("UINT64", "seed", "random_seed"),
    *_one("BOOL", "return_log_probs", "return_num_input_tokens", "return_num_output_tokens"),
    *_one("INT32", "beam_width"),
    *_one("BOOL", "stream"),
)
_TENSORRTLLM_OUTPUTS = (
    Signature("text_output", "BYTES"),
    Signature("cum_log_probs", "FP32"),
    Signature("output_log_probs", "FP32", (-1, -1)),
    Signature("batch_index", "INT32", (1,)),
    Signature("sequence_index", "INT32", (1,)),
    Signature("num_input_tokens", "INT32", (1,)),
    Signature("num_output_tokens", "INT32", (1,)),
)

_OLDEST = "oldest { max_candidate_sequences: 1024 }"

MODELS: dict[str, Model] = {
    **{f"identity_{datatype.lower()}": _identity(datatype) for datatype in CONFIG_TYPES},
    "identity_cpp": _identity("FP32"),
    "identity_cpp_bytes": _identity("BYTES"),
    "identity_rank3": _identity("FP32", dims=(-1, -1, -1)),
    "identity_mixed": _identity("FP32", "INT32", "BYTES"),
    "identity_batched": _identity("FP32", max_batch_size=8, more="dynamic_batching { }\n"),
    "identity_optional": _identity("FP32", "INT32", max_batch_size=8, optional_from=1),
    "slow": Model(
        inputs=(Signature("INPUT0", "FP32"), _DELAY),
        outputs=(Signature("OUTPUT0", "FP32"),),
        backend=_CANCELLABLE,
        instances=8,
    ),
    "late": Model(
        inputs=(Signature("INPUT0", "FP32"), _LATE),
        outputs=(Signature("OUTPUT0", "FP32"),),
        backend=_IDENTITY,
        instances=4,
    ),
    "queued": Model(
        inputs=(Signature("INPUT0", "FP32"), _DELAY),
        outputs=(Signature("OUTPUT0", "FP32"),),
        backend=_CANCELLABLE,
        max_batch_size=1,
        more=_queue(4),
    ),
    "failing": Model(
        inputs=(
            Signature("FAIL_MESSAGE", "BYTES", (1,)),
            Signature("FAIL_CODE", "INT32", (1,), optional=True),
        ),
        outputs=(Signature("OUTPUT0", "BYTES"),),
        backend=_IDENTITY,
    ),
    "add_sub": _add_sub(_COMPUTING),
    "variable": Model(
        inputs=(Signature("ROW", "FP32"), Signature("COUNT", "INT32", (1,))),
        outputs=(Signature("TWICE", "FP32"), Signature("TILED", "FP32", (-1, -1))),
        backend=_COMPUTING,
    ),
    "strings": Model(
        inputs=(Signature("TEXT", "BYTES"),),
        outputs=(Signature("UPPER", "BYTES"), Signature("LENGTH", "INT32")),
        backend=_COMPUTING,
    ),
    "text_numbers": Model(
        inputs=(Signature("TEXT", "BYTES"), Signature("VALUE", "FP64")),
        outputs=(Signature("PARSED", "FP64"), Signature("WRITTEN", "BYTES")),
        backend=_COMPUTING,
    ),
    "repeat_int32": Model(
        inputs=(
            Signature("IN", "INT32"),
            Signature("DELAY", "UINT32"),
            Signature("WAIT", "UINT32", (1,)),
        ),
        outputs=(Signature("OUT", "INT32", (1,)), Signature("IDX", "UINT32", (1,))),
        backend=_CANCELLABLE,
        more=_DECOUPLED,
        by_default=False,
    ),
    "square_int32": Model(
        inputs=(Signature("IN", "INT32", (1,)),),
        outputs=(Signature("OUT", "INT32", (1,)),),
        backend=_CANCELLABLE,
        more=_DECOUPLED,
        by_default=False,
    ),
    "cancellations": Model(
        inputs=(Signature("RESET", "BOOL", (1,)),),
        outputs=(Signature("CANCELLED", "INT64", (1,)), Signature("RUNNING", "INT64", (1,))),
        backend=_CANCELLABLE,
        by_default=False,
    ),
    # Without batches, the direct strategy gives each instance to one sequence at a time.
    "accumulate_direct": _accumulate("direct { }", "UINT64", instances=16),
    "accumulate_oldest": _accumulate(_OLDEST, "UINT64", instances=1),
    "accumulate_string": _accumulate(_OLDEST, "BYTES", instances=1),
    "batched_identity_fp32": _delayed(max_batch_size=8, max_queue_size=0),
    "small_queue_fp32": _delayed(max_batch_size=1, max_queue_size=2),
    "identity_batched_bytes": replace(_identity("BYTES", max_batch_size=8), by_default=False),
    "classify_fp32": _classifier("cat\ndog\nowl\nfox\n"),
    "classify_unlabelled_fp32": _classifier(""),
    "ensemble_add_sub": replace(
        _add_sub(ENSEMBLE),
        by_default=False,
        parts=("add_sub", "identity_batched"),
        more="""\
ensemble_scheduling {
  step [
    {
      model_name: "add_sub"
      model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      input_map { key: "INPUT1" value: "INPUT1" }
      output_map { key: "OUTPUT0" value: "sum" }
      output_map { key: "OUTPUT1" value: "OUTPUT1" }
    },
    {
      model_name: "identity_batched"
      model_version: -1
      input_map { key: "INPUT0" value: "sum" }
      output_map { key: "OUTPUT0" value: "OUTPUT0" }
    }
  ]
}
""",
    ),
    "add_sub_python": replace(_add_sub(PYTHON), by_default=False, code="add_sub_python"),
    "cancel_aware_python": Model(
        inputs=(Signature("SECONDS", "FP32", (1,)),),
        outputs=(
            Signature("COMPLETED", "INT64", (1,)),
            Signature("CANCELLED", "INT64", (1,)),
            Signature("TOOK", "FP32", (1,)),
        ),
        backend=PYTHON,
        by_default=False,
        code="cancel_aware_python",
    ),
    "prompt_text": _generates_text(_PROMPT, _TEXT, decoupled=False),
    "prompt_text_stream": _generates_text(_PROMPT, _TEXT, decoupled=True),
    "vllm_like": _generates_text(_VLLM_INPUTS, _VLLM_OUTPUTS, decoupled=True),
    "tensorrtllm_like": _generates_text(
        _TENSORRTLLM_INPUTS, _TENSORRTLLM_OUTPUTS, decoupled=True, max_batch_size=8
    ),
}
