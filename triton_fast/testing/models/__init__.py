"""The built-in test models, written into a model repository.

Owns what users ask for and what they are told about it; the configurations are
`triton_fast.testing.catalogue`'s. The code of Python-backend models lies beside this file and is
copied.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from triton_fast.errors import InvalidOption
from triton_fast.testing.catalogue import MODELS
from triton_fast.testing.model_config import PYTHON

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

__all__ = ["FURTHER_TEST_MODELS", "PYTHON_TEST_MODELS", "TEST_MODELS", "write_test_models"]

TEST_MODELS = tuple(name for name, model in MODELS.items() if model.by_default)
"""The names of the built-in models that are served where nobody has chosen."""

PYTHON_TEST_MODELS = tuple(name for name, model in MODELS.items() if model.backend == PYTHON)
"""The names of those that run in the Python backend, each in a process of its own."""

FURTHER_TEST_MODELS = tuple(
    name for name in MODELS if name not in TEST_MODELS and name not in PYTHON_TEST_MODELS
)
"""The names of all others, which like those in Python are served only when they are named."""


def write_test_models(folder: str | os.PathLike[str], names: Iterable[str] | None = None) -> Path:
    """Write built-in test models into a model repository.

    Parameters
    ----------
    folder : path
        The model repository; made if it is not there. Models in it that have other names stay.
    names : iterable of str, optional
        Which models, of `TEST_MODELS`, `FURTHER_TEST_MODELS` and `PYTHON_TEST_MODELS`;
        `TEST_MODELS` when left out. What an ensemble is made of comes with it.

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

    Those up to ``failing`` also answer with the request's own parameters (and, with
    ``--grpc-header-forward-pattern``, with its headers) as response parameters.

    `FURTHER_TEST_MODELS`:

    ``repeat_int32``
        Decoupled, as Triton's own example of that name: an answer for each element of ``IN``
        (INT32), with ``OUT`` the element and ``IDX`` (UINT32) its index, both ``[1]``. Before each
        it takes as many milliseconds as ``DELAY`` (UINT32, as many elements) says; the request is
        let go after ``WAIT`` (UINT32, ``[1]``) milliseconds. The final flag comes by itself, in a
        response without outputs. Any number of requests at a time.
    ``square_int32``
        Decoupled: as many answers as ``IN`` (INT32, ``[1]``) says, each ``OUT`` (INT32, ``[1]``) =
        ``IN``. Up to 20,000 are sent as fast as possible, more of them one each millisecond. The
        last has the final flag; for 0 it comes by itself. Any number of requests at a time.
    ``cancellations``
        ``CANCELLED`` (INT64, ``[1]``): how many requests were cancelled while ``repeat_int32``,
        ``square_int32``, ``slow``, ``queued``, ``batched_identity_fp32`` or ``small_queue_fp32``
        had them; not those that were still in a queue. ``RUNNING`` (INT64, ``[1]``): how many they
        have now. With ``RESET`` (BOOL, ``[1]``) true, ``CANCELLED`` counts from zero afterwards.
        A cancelled request ends with CANCELLED and the final flag.
    ``accumulate_direct``, ``accumulate_oldest``, ``accumulate_string``
        Sequences, ended when idle for 3 s. ``OUTPUT``: the sum of ``INPUT`` since the sequence's
        start; ``ENDED``: how many sequences of the model have ended with the end flag; all INT32,
        ``[1]``. The scheduling strategies are direct (16 sequences at a time), oldest and oldest.
        ``accumulate_string`` is for sequence ids that are strings, of at most 128 bytes, the others
        for numbers; the server does not refuse the other kind, but tells the model a wrong id.
    ``batched_identity_fp32``
        An identity (FP32), ``max_batch_size`` 8, dynamic batching, two priorities (2 when none is
        given), queue timeouts. ``DELAY`` (FP32, ``[1]``, may be left out) as for ``slow``; one call
        at a time.
    ``small_queue_fp32``
        The same with ``max_batch_size`` 1 and a queue of 2; it takes 0.2 s without ``DELAY``.
    ``identity_batched_bytes``
        BYTES, ``max_batch_size`` 8.
    ``classify_fp32``, ``classify_unlabelled_fp32``
        An identity (FP32), ``max_batch_size`` 8, for the classification extension; the classes of
        the former are ``cat``, ``dog``, ``owl``, ``fox``.
    ``ensemble_add_sub``
        As ``add_sub``, which makes it up together with ``identity_batched``.

    `PYTHON_TEST_MODELS`, a process each:

    ``add_sub_python``
        The same as ``add_sub``.
    ``cancel_aware_python``
        Takes ``SECONDS`` (FP32, ``[1]``), unless it is cancelled, and answers with how many calls
        it has ``COMPLETED`` and how many it has seen ``CANCELLED`` (INT64, ``[1]``), and how long
        this one ``TOOK`` (FP32, ``[1]``). With less than 0 seconds the call only asks, and does not
        count. One call at a time.
    ``prompt_text``
        Generates a ``text`` for a ``prompt`` (both BYTES, ``[1]``).
    ``prompt_text_stream``
        The same, decoupled: an answer for each token, and the final flag by itself.
    ``vllm_like``
        Generates text with the signature and the habits of Triton's vLLM backend (release 25.12,
        without images, LoRA and embeddings). Among them: not streaming, the text begins with the
        prompt unless ``exclude_input_in_output`` is true; streaming, ``finish_reason`` is ``None``
        up to the last answer, which has the final flag; ``num_input_tokens`` has no dimension;
        ``num_output_tokens`` are those of the answer; 16 tokens when no limit is given.
    ``tensorrtllm_like``
        Generates text with the signature of TensorRT-LLM's ensemble (without LoRA, prompt tables,
        encoders and guided decoding), ``max_batch_size`` 8, one prompt a request. ``text_output``
        has no batch dimension, the final flag comes by itself, and why the text ended is not told.
        ``random_seed``, the older name of ``seed``, is an input too.

    The text is the prompt's words, last to first, each a token, with a space before all but the
    first. It ends before a stop word (a token that is one, in whole) and without more words
    (``stop``), or when there are more than ``max_tokens`` (``length``); ``bad_words`` are left out.
    With a ``temperature`` above 0, token `i` is in upper case when ``seed`` + `i` is odd. A prompt
    that begins with ``!error`` fails after half its tokens; for the prompt ``!cancelled`` the text
    is how many generations the model has seen cancelled. Before each token it takes
    ``TRITON_FAST_TOKEN_DELAY`` seconds, of the server's environment, or what a request's parameter
    ``token_delay`` says; then it looks whether it was cancelled. Other settings come as each
    signature has them, for the plain ones as parameters of the request: ``max_tokens``,
    ``temperature``, ``seed``, ``stop``, ``bad_words``.
    """
    repository = Path(folder)
    chosen = TEST_MODELS if names is None else tuple(names)
    unknown = [name for name in chosen if name not in MODELS]
    if unknown:
        raise InvalidOption(
            f"no built-in test model is called {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(MODELS)}"
        )
    repository.mkdir(parents=True, exist_ok=True)
    parts = [part for name in chosen for part in MODELS[name].parts]
    for name in dict.fromkeys([*chosen, *parts]):
        model = MODELS[name]
        version = repository / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        files = {"config.pbtxt": model.config(), **model.files}
        for file, text in files.items():
            (repository / name / file).write_text(text, encoding="utf-8")
        if model.code:
            shutil.copyfile(Path(__file__).with_name(f"{model.code}.py"), version / "model.py")
    return repository
