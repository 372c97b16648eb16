"""Audio in chunks, for a model that keeps state between requests: a sequence.

``python examples/stateful_audio.py`` starts a Triton of its own; with a URL it talks to yours,
which should serve the test model ``accumulate_oldest``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from any_server import server_url

from triton_fast import Client, InferSequence

# The model stands for one that listens: it keeps a sum for each sequence. What it is sent here is
# how often a chunk's wave goes through zero, and from the sum of that comes the tone's pitch.
MODEL = "accumulate_oldest"
RATE = 16_000  # samples a second
CHUNK = RATE // 10


def main() -> None:
    """Listen to two callers at once."""
    with (
        server_url(MODEL) as url,
        Client(url, timeout=10) as client,
        # Each has an id that nobody else has, so that the model tells the callers apart. The first
        # request says that a sequence starts. Leaving the block tells the model that it has ended,
        # also when it is left by an exception.
        client.sequence(MODEL) as low,
        client.sequence(MODEL) as high,
    ):
        for number, (one, other) in enumerate(zip(tone(262), tone(440), strict=True), 1):
            heard = number * CHUNK / RATE
            c, a = listen(low, one) / heard, listen(high, other) / heard
            print(f"after {heard:.1f} s: {c:5.1f} Hz and {a:5.1f} Hz")


def listen(sequence: InferSequence, chunk: np.ndarray) -> float:
    """Send a chunk; return how many waves there were since the sequence's start."""
    crossings = np.count_nonzero(np.diff(np.signbit(chunk)))
    result = sequence.infer({"INPUT": np.array([crossings], np.int32)})
    return int(result["OUTPUT"][0]) / 2


def tone(pitch: float, seconds: float = 1.0) -> Iterator[np.ndarray]:
    """Give a tone in chunks, as a microphone would."""
    times = np.arange(int(seconds * RATE) + 1) / RATE
    wave = np.sin(2 * np.pi * pitch * times + 0.1)
    for start in range(0, len(wave) - 1, CHUNK):
        yield wave[start : start + CHUNK + 1]  # one sample more, to see what lies in between


if __name__ == "__main__":
    main()
