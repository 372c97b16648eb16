"""AsyncClient as if it were Client: the same tests for both faces.

`BlockingFace` runs an AsyncClient on the event loop of a thread of its own, and waits for what it
awaits. Only of the names that tests of both faces use.
"""

from __future__ import annotations

import asyncio
import threading

from triton_fast import AsyncClient


class BlockingFace:
    """An AsyncClient and its loop."""

    def __init__(self, url, **settings):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="event loop")
        self._thread.start()
        self._client = AsyncClient(url, **settings)

    def run(self, awaitable):
        async def awaited():
            return await awaitable

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(60)

    def infer(self, *arguments, **more):
        return self.run(self._client.infer(*arguments, **more))

    def model_metadata(self, *arguments):
        return self.run(self._client.model_metadata(*arguments))

    def model(self, name):
        model = self._client.model(name)
        return lambda *arguments, **more: self.run(model(*arguments, **more))

    def stream(self, *arguments, **more):
        return _Answers(self, self._client.stream(*arguments, **more))

    def sequence(self, *arguments, **more):
        return _Sequence(self, self._client.sequence(*arguments, **more))

    def close(self):
        if self._loop.is_running():
            self.run(self._client.close())

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.close()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class _Sequence:
    def __init__(self, face, sequence):
        self._face = face
        self._sequence = sequence

    @property
    def id(self):
        return self._sequence.id

    def infer(self, *arguments, **more):
        return self._face.run(self._sequence.infer(*arguments, **more))

    def stream(self, *arguments, **more):
        return _Answers(self._face, self._face.run(self._sequence.stream(*arguments, **more)))

    def close(self):
        self._face.run(self._sequence.aclose())

    def __enter__(self):
        self._face.run(self._sequence.__aenter__())
        return self

    def __exit__(self, kind, error, traceback):
        self._face.run(self._sequence.__aexit__(kind, error, traceback))


class _Answers:
    def __init__(self, face, answers):
        self._face = face
        self._answers = answers

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self._face.run(anext(self._answers))
        except StopAsyncIteration:
            raise StopIteration from None
