"""A web service in front of Triton: one AsyncClient, shared by all of its requests (FastAPI).

``python examples/service.py`` starts a Triton and visits the service with a few hundred requests;
with a URL it does so with yours, which should serve the test model ``add_sub``. To have it serve::

    TRITON_FAST_URL=localhost:8001 uvicorn --app-dir examples --factory service:service
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated

import httpx
import numpy as np
from any_server import server_url
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from triton_fast import (
    AsyncClient,
    AsyncModel,
    DeadlineExceeded,
    InferResult,
    InvalidArgument,
    InvalidTensor,
    TritonFastError,
    Unavailable,
)

# What the service answers for errors that are not its own fault; 502 for all others.
STATUS = {
    InvalidTensor: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidArgument: HTTPStatus.UNPROCESSABLE_ENTITY,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}

CLIENT_CLOSED_REQUEST = 499  # nginx's name for it, for the logs: nobody reads the answer

Row = Annotated[list[float], Field(max_length=64)]


class Pair(BaseModel):
    """The rows to add and to subtract; the model takes 16 numbers each."""

    one: Row
    other: Row


def service(url: str | None = None) -> FastAPI:
    """Return the service; without a URL, the environment has the client's settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # One client for as long as the service runs, not one for each request: it keeps its
        # connections, and has many calls on each. Nothing is connected before the first call, so
        # that the service also starts while Triton does not run yet.
        client = AsyncClient(url, timeout=10) if url else AsyncClient.from_env(timeout=10)
        async with client:
            app.state.triton = client
            app.state.add_sub = client.model("add_sub")  # knows what the model takes
            yield

    app = FastAPI(lifespan=lifespan)
    app.post("/add_sub")(add_sub)
    app.get("/health")(health)
    app.exception_handler(TritonFastError)(failed)
    return app


async def add_sub(pair: Pair, request: Request) -> dict[str, list[float]]:
    """Have the model compute. If the visitor leaves meanwhile, the call is cancelled, too."""
    model: AsyncModel = request.app.state.add_sub
    one, other = (np.array([row], np.float32) for row in (pair.one, pair.other))
    result = await while_there(request, model(INPUT0=one, INPUT1=other))
    return {"sum": result["OUTPUT0"][0].tolist(), "difference": result["OUTPUT1"][0].tolist()}


async def while_there(request: Request, call: Awaitable[InferResult]) -> InferResult:
    """Await a call, as long as the visitor does: nobody tells a handler by itself."""
    answer = asyncio.ensure_future(call)
    leaving = asyncio.ensure_future(request.receive())  # the body was read: the end comes next
    try:
        await asyncio.wait((answer, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the visitor has left")
        return answer.result()
    finally:
        for task in (answer, leaving):
            task.cancel()  # and so the call, at the server too
        await asyncio.wait((answer, leaving))


async def health(request: Request) -> JSONResponse:
    """Say how Triton is; this never raises for it."""
    client: AsyncClient = request.app.state.triton
    seen = await client.health(timeout=5)
    status = HTTPStatus.OK if seen.status == "healthy" else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"triton": seen.status, "seconds": seen.latency}, status)


async def failed(_: Request, error: Exception) -> JSONResponse:
    """Answer for a call that failed: all errors are of one tree."""
    kinds = (STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    return JSONResponse({"error": str(error)}, next(kinds, HTTPStatus.BAD_GATEWAY))


async def visit(app: FastAPI) -> None:
    """Do as a few hundred visitors would."""
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as visitor,
    ):
        answer = await visitor.get("/health")
        print("health:   ", answer.status_code, answer.json())

        rows = [{"one": [number] * 16, "other": [1] * 16} for number in range(300)]
        start = time.perf_counter()
        answers = await asyncio.gather(*(visitor.post("/add_sub", json=row) for row in rows))
        seconds = time.perf_counter() - start
        sums = [answer.json()["sum"][0] for answer in answers if answer.is_success]
        right = "all right" if sums == list(range(1, 301)) else "NOT all right"
        statuses = dict(Counter(answer.status_code for answer in answers))
        print(f"300 rows:  {statuses}, {right}, in {seconds * 1e3:.0f} ms")
        for error in {answer.json()["error"] for answer in answers if answer.is_error}:
            print(error)

        answer = await visitor.post("/add_sub", json={"one": [1, 2, 3], "other": [1, 2, 3]})
        print("too short:", answer.status_code, answer.json()["error"])


if __name__ == "__main__":
    with server_url("add_sub") as triton_url:
        asyncio.run(visit(service(triton_url)))
