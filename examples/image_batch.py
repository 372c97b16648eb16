"""A batch of images, larger than the model takes at once, through shared memory.

``python examples/image_batch.py`` starts a Triton of its own; with a URL it talks to yours, which
should serve the test model ``identity_batched`` and run on this machine.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
from any_server import server_url

from triton_fast import Client

# The model stands for one that looks at images: it gives each back as it is, and takes 8 at once.
MODEL = "identity_batched"
SHAPE = (3, 224, 224)
COUNT = 40


def main() -> None:
    """Send the same images through shared memory and over the wire."""
    with server_url(MODEL) as url:
        # "auto", the default, uses shared memory where the server takes it, and the wire elsewhere.
        show("shared memory", url, "auto")
        show("wire", url, False)


def show(title: str, url: str, shared_memory: bool | Literal["auto"]) -> None:
    """Send the images a few times, and print how long that takes."""
    with Client(url, timeout=60, shared_memory=shared_memory) as client:
        # An array that lies where the server can read it: what you decode into it is not copied
        # again. One from np.empty() will do as well, and is copied into a slot by the call.
        images = client.empty((COUNT, *SHAPE), np.float32)
        for number, image in enumerate(images):
            image[:] = number  # your camera, or decoder

        times = []
        for _ in range(5):
            start = time.perf_counter()
            # This model's images are flat: a view on the same memory. split=True sends 8 at a time,
            # several pieces at once, and joins the answers.
            result = client.infer(MODEL, {"INPUT0": images.reshape(COUNT, -1)}, split=True)
            times.append(time.perf_counter() - start)

        # The answer is an array on shared memory, too. Nothing has to be given back: the memory is
        # free for another call when the array dies.
        answer = result["OUTPUT0"].reshape(images.shape)
        right = "all right" if np.array_equal(answer, images) else "WRONG"
        size = f"{COUNT} images, {answer.nbytes / 1e6:.0f} MB"
        print(f"{title:>13}: {size} there and back in {min(times) * 1e3:.0f} ms, {right}")


if __name__ == "__main__":
    main()
