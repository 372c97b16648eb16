"""A chat: answers are shown token by token, as the model makes them.

``python examples/streaming_chat.py`` starts a Triton of its own; with a URL it talks to yours,
which should serve the test model ``vllm_like``, or one of Triton's vLLM backend under that name.
"""

from __future__ import annotations

import time

from any_server import server_url

from triton_fast import Client, Finished, Started, Token

# The test model is called and answers as one of Triton's vLLM backend; all it knows is to say the
# prompt backwards. TensorRT-LLM's models, and plain ones of prompt and text, are called the same
# way.
MODEL = "vllm_like"
PROMPTS = [
    "made are they as tokens my you show I",
    "time in cut be can that answer long very a is this",
]


def main() -> None:
    """Have a short conversation."""
    with (
        server_url(MODEL, env={"TRITON_FAST_TOKEN_DELAY": "0.05"}) as url,
        Client(url, timeout=30) as client,
    ):
        for prompt in PROMPTS:
            answer(client, prompt)

        # Whoever has heard enough leaves: the model is told to stop, and works for nobody.
        print(f"you:   {PROMPTS[0]}\nmodel: ", end="")
        with client.generate(MODEL, PROMPTS[0]) as events:
            for event in events:
                if isinstance(event, Token):
                    print(event.text, end="", flush=True)
                    if event.index == 2:
                        break
        print(" …")


def answer(client: Client, prompt: str) -> None:
    """Print the answer to a prompt."""
    print(f"you:   {prompt}\nmodel: ", end="")
    start = time.perf_counter()
    for event in client.generate(MODEL, prompt, max_tokens=9, stop=["enough"]):
        seconds = time.perf_counter() - start
        match event:
            case Started():
                first = seconds
            case Token(text):
                print(text, end="", flush=True)
            case Finished(reason, usage):
                print(f"\n       {usage.completion_tokens} tokens in {seconds:.2f} s, ", end="")
                print(f"the first after {first:.2f} s; ended by {reason!r}")


if __name__ == "__main__":
    main()
