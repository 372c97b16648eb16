"""Serve a small network with a real Triton, send it 1,797 handwritten digits, compare the clients.

``make demo`` runs this. The exit status is 0 if every answer is what it should be, and 1 otherwise.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HINT = "`make demo` installs all that the demo needs"

try:
    import numpy as np
    from comparison import Workload, WrongAnswer, compare
    from model_repository import MAX_BATCH_SIZE, write_model_repository
    from tqdm import tqdm
    from training import Array, Digits, train

    from triton_fast import Client, TritonFastError
    from triton_fast.testing import TritonServer
except ImportError as error:
    sys.exit(f"✗ {error}; {HINT}")

# A network that was fitted as it should be is right in more than 97 of 100.
LEAST_ACCURACY = 0.95
# The server multiplies in batches of another size than scikit-learn: other roundings (float32).
LARGEST_DIFFERENCE = 1e-5


def main() -> int:
    """Run the demo; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=5, help="for each workload of the table (default: 5)"
    )
    arguments = parser.parse_args()
    # Lines show at once also when they go to a file, and one of any encoding.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="replace")
    try:
        return 0 if run(arguments.seconds) else 1
    except (TritonFastError, WrongAnswer) as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    except ImportError as error:  # scikit-learn is imported late
        print(f"✗ {error}; {HINT}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n✗ interrupted; the server is stopped", file=sys.stderr)
        return 130


def run(seconds: float) -> bool:
    """Tell the whole story; return whether everything was right."""
    start = time.perf_counter()
    print("triton_fast: 1,797 handwritten digits through a real Triton server\n")
    with waiting("fitting a network"):
        digits = train()
    check(True, f"a network fitted to {len(digits.labels) - len(digits.held_out):,} of the digits")

    with tempfile.TemporaryDirectory(prefix="triton_fast_demo_") as folder:
        write_model_repository(Path(folder), digits.weights)
        server = TritonServer(
            folder,
            extra_args=["--disable-auto-complete-config"],
            env={"OPENBLAS_NUM_THREADS": "1"},  # such small matrices are faster on one thread
        )
        with waiting("starting Triton"):
            server.start()
        with server, Client(server.grpc_url) as client:
            version = client.server_metadata().version
            check(True, f"Triton {version} serves it at {server.grpc_url}")
            right = recognize(client, digits)
            if right:
                compare(server, workloads(digits), seconds)

    print()
    return check(right, f"{'done' if right else 'FAILED'} in {time.perf_counter() - start:.0f} s")


def recognize(client: Client, digits: Digits) -> bool:
    """Send all images, one by one and in batches; return whether the answers are right."""
    model = client.model("digits")
    images = tqdm(digits.images, "  one by one", unit=" images", leave=False, disable=None)
    single = np.concatenate([model(IMAGE=image[np.newaxis])["DIGIT"][:, 0] for image in images])

    starts = range(0, len(digits.images), MAX_BATCH_SIZE)
    results = [model(IMAGE=digits.images[start : start + MAX_BATCH_SIZE]) for start in starts]
    batched = np.concatenate([result["DIGIT"][:, 0] for result in results])
    scores = np.concatenate([result["SCORES"] for result in results])

    show(digits.images[digits.held_out], single[digits.held_out])
    same = np.sum((single == digits.predictions) & (batched == digits.predictions))
    difference = np.abs(scores - digits.scores).max()
    accuracy = np.mean(single[digits.held_out] == digits.labels[digits.held_out])
    return all(
        [
            check(
                same == len(single),
                f"{same:,} of {len(single):,} answers are scikit-learn's, alone and in batches",
            ),
            check(
                difference < LARGEST_DIFFERENCE,
                f"scores are scikit-learn's; the largest difference is {difference:.1g}",
            ),
            check(
                accuracy >= LEAST_ACCURACY,
                f"{accuracy:.1%} of the {len(digits.held_out)} held-out digits are recognized",
            ),
        ]
    )


def workloads(digits: Digits) -> list[Workload]:
    """Return what the clients are compared with."""

    def recognition(title: str, size: int) -> Workload:
        images, labels = digits.images[:size], digits.predictions[:size, np.newaxis]
        return Workload(title, "digits", "IMAGE", "DIGIT", images, labels, size, "images")

    def identity(title: str, byte_size: int) -> Workload:
        tensor = np.random.default_rng(0).random(byte_size // 4, np.float32)
        amount, unit = (1.0, "calls") if byte_size < 1000 else (byte_size / 1e6, "MB")
        return Workload(title, "identity_fp32", "INPUT0", "OUTPUT0", tensor, tensor, amount, unit)

    return [
        recognition("digits, 1 image", 1),
        recognition(f"digits, {MAX_BATCH_SIZE} images", MAX_BATCH_SIZE),
        identity("identity, 64 B", 64),
        identity("identity, 602,112 B", 602_112),
        identity("identity, 4 MiB", 4 << 20),
    ]


def show(images: Array, answers: Array) -> None:
    """Print the first few images, and what the server takes them for."""
    images, answers = images[:8], answers[:8]
    dark = images > 0.4
    print()
    for row in range(0, 8, 2):
        # One character for two pixels, one above the other.
        halves = dark[:, row] + 2 * dark[:, row + 1]
        print("  ", *("".join(" ▀▄█"[half] for half in line) for line in halves))
    print("  ", *(f"{answer:^8}" for answer in answers), end="\n\n")


def check(right: bool, text: str) -> bool:
    """Print a line that says whether something is right; return whether it is."""
    print(f"{'✓' if right else '✗'} {text}")
    return right


def waiting(text: str) -> tqdm[Any]:
    """Return a context that shows, on a terminal, what is being waited for."""
    return tqdm(bar_format="  {desc} …", desc=text, leave=False, disable=None)


if __name__ == "__main__":
    sys.exit(main())
