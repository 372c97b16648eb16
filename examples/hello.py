"""The first call: numpy arrays in, numpy arrays out.

``python examples/hello.py`` starts a Triton of its own; ``python examples/hello.py localhost:8001``
talks to yours, which should serve the test model ``add_sub``.
"""

from __future__ import annotations

import numpy as np
from any_server import server_url

from triton_fast import Client, InvalidTensor, NotFound


def main() -> None:
    """Make a few calls."""
    # A client is made once, for the whole program: it is thread-safe, and keeps its connections.
    with server_url("add_sub") as url, Client(url, timeout=10) as client:
        print(f"Triton {client.server_metadata().version} at {url}")

        # The model adds and subtracts rows of 16 numbers; up to 8 rows make a batch.
        ones = np.ones((2, 16), np.float32)
        numbers = np.arange(32, dtype=np.float32).reshape(2, 16)
        result = client.infer("add_sub", {"INPUT0": numbers, "INPUT1": ones})
        print("sum:       ", result["OUTPUT0"][0, :5], "…")
        print("difference:", result["OUTPUT1"][0, :5], "…")

        # A model that is called often: its handle knows what it takes, and checks before sending.
        add_sub = client.model("add_sub")
        total = sum(add_sub(INPUT0=numbers, INPUT1=ones)["OUTPUT0"].sum() for _ in range(100))
        print(f"100 calls gave {total:,.0f}")

        try:
            add_sub(INPUT0=numbers.astype(np.float64), INPUT1=ones)
        except InvalidTensor as error:
            print("not sent:  ", error)
        try:
            client.infer("add_sup", {"INPUT0": numbers, "INPUT1": ones})
        except NotFound as error:
            print("refused:   ", error.message)


if __name__ == "__main__":
    main()
