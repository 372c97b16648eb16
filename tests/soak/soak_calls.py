"""A program that makes many calls of every kind and says what it has of memory and descriptors.

    python soak_calls.py URL CHANNEL COUNT [PLANTED]

prints one JSON list of measurements, taken at equal distances after a warm-up. With PLANTED, it
leaks memory, descriptors and threads on purpose, for the test of the test.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import itertools
import json
import os
import sys
import threading
import time

import numpy as np
from support.process import descriptors, resident

from triton_fast import Client, DeadlineExceeded, InvalidTensor, NotFound
from triton_fast._core import _wire

MEASUREMENTS = 50
# One round of calls. What is rare in it costs most.
ROUND = 1000


def measure(calls: int) -> dict[str, float]:
    gc.collect()
    # What the allocator keeps for the next time is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    return {
        "calls": calls,
        "time": time.monotonic(),
        "resident": resident(),
        "descriptors": len(descriptors()),
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "native_objects": sum(_wire.live_counts().values()),
    }


class Soak:
    def __init__(self, url: str, channel: str) -> None:
        self.url = url
        self.channel = channel
        self.client = Client(url, channel=channel, timeout=60)
        self.small = np.arange(16, dtype=np.float32)
        self.large = np.arange(150_528, dtype=np.float32)
        self.out = np.empty_like(self.large)
        self.strings = np.array([b"a", b"", b"long " * 100], object)

    def call(self, number: int) -> None:
        """Make one call; which kind it is depends on its number."""
        place = number % ROUND
        if place % 50 == 7:
            self.infer_large(place)
        elif place % 100 == 11:
            self.strings_there_and_back()
        elif place % 100 == 13:
            self.submitted()
        elif place % 100 == 17:
            self.refused()
        elif place == 19:
            self.too_late()
        elif place == 23:
            self.cancelled()
        elif place == 29:
            self.compressed()
        elif place == 31:
            self.on_another_thread()
        elif place == 37:
            self.with_another_client()
        elif place % 100 == 41:
            assert self.client.is_model_ready("identity_fp32")
        else:
            self.small[0] = number
            result = self.client.infer("identity_fp32", {"INPUT0": self.small})["OUTPUT0"]
            assert result.tobytes() == self.small.tobytes()

    def infer_large(self, place: int) -> None:
        out = {"OUTPUT0": self.out} if place % 100 == 7 else None
        result = self.client.infer("identity_fp32", {"INPUT0": self.large}, out=out)["OUTPUT0"]
        assert (result == self.large).all()

    def strings_there_and_back(self) -> None:
        result = self.client.infer("identity_bytes", {"INPUT0": self.strings})["OUTPUT0"]
        assert result.tolist() == self.strings.tolist()

    def submitted(self) -> None:
        futures = [
            self.client.submit("identity_fp32", {"INPUT0": self.small}, headers={"x-turn": str(n)})
            for n in range(3)
        ]
        for future in futures:
            assert (future.result()["OUTPUT0"] == self.small).all()

    def refused(self) -> None:
        for inputs in ({"NOPE": self.small}, {}):
            try:
                self.client.infer("identity_fp32", inputs)
            except InvalidTensor:
                continue
            raise AssertionError("not refused")
        try:
            self.client.infer("nope", {"INPUT0": self.small})
        except NotFound:
            return
        raise AssertionError("not refused")

    def too_late(self) -> None:
        inputs = {"INPUT0": self.small, "DELAY": np.array([600], np.float32)}
        try:
            self.client.infer("slow", inputs, timeout=0.003)
        except DeadlineExceeded:
            return
        raise AssertionError("too early")

    def cancelled(self) -> None:
        inputs = {"INPUT0": self.small, "DELAY": np.array([600], np.float32)}
        future = self.client.submit("slow", inputs)
        assert future.cancel()
        try:
            future.result()
        except concurrent.futures.CancelledError:
            return
        raise AssertionError("not cancelled")

    def compressed(self) -> None:
        result = self.client.infer("identity_fp32", {"INPUT0": self.large}, compression="gzip")
        assert (result["OUTPUT0"] == self.large).all()

    def on_another_thread(self) -> None:
        thread = threading.Thread(target=self.infer_large, args=(0,))
        thread.start()
        thread.join()

    def with_another_client(self) -> None:
        with Client(self.url, channel=self.channel, timeout=60) as client:
            model = client.model("identity_fp32")
            assert (model({"INPUT0": self.small})["OUTPUT0"] == self.small).all()


def main() -> None:
    url, channel, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    planted = len(sys.argv) > 4
    soak = Soak(url, channel)
    kept: list[object] = []
    numbers = itertools.count()
    for _ in range(2 * ROUND):  # every kind has come twice: what is made once is made
        soak.call(next(numbers))
    measurements = [measure(0)]
    for part in range(MEASUREMENTS):
        end = count * (part + 1) // MEASUREMENTS
        for _ in range(measurements[-1]["calls"], end):
            number = next(numbers)
            soak.call(number)
            if planted:
                kept.append(bytearray(1000))
            if planted and number % 200 == 0:
                kept.append(os.dup(0))
                threading.Thread(target=threading.Event().wait, daemon=True).start()
        measurements.append(measure(end))
    print(json.dumps(measurements), flush=True)


if __name__ == "__main__":
    main()
