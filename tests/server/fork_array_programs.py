"""What tests of arrays and forks do, each in an interpreter of its own: run(name, url) does one.

Forks are for processes without grpcio, whose core may keep a child for ever.
"""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
from support.forked_children import fork, join

from triton_fast import AsyncClient, Client, ClosedError
from triton_fast.shared_memory import fork_copies

SIZE = 1 << 16


def run(name, url):
    with Client(url, shared_memory=True, timeout=60) as client:
        infer(client, 0)  # from now on results are in slots
        PROGRAMS[name](client)
    print("done")


def infer(client, value):
    array = np.full(SIZE, value, np.float32)
    return client.infer("identity_cpp", {"INPUT0": array})["OUTPUT0"]


def is_all(array, value):
    return bool((array == value).all())


class Turn:
    """Somebody waits until another process has done something."""

    def __init__(self):
        self._reading, self._writing = os.pipe()

    def comes(self):
        os.write(self._writing, b".")

    def wait(self):
        assert os.read(self._reading, 1) == b"."


def neither_side_sees_what_the_other_writes(client, times=30):
    child_turn, parent_turn = Turn(), Turn()
    for number in range(1, times + 1):
        result = infer(client, number)
        room = client.empty(100, np.float32)  # on a page that it shares with others
        room[:] = number

        def work(result=result, room=room, number=number):
            assert is_all(result, number)
            assert is_all(room, number)
            result[:] = -7
            room[:] = -7
            child_turn.comes()
            parent_turn.wait()
            assert is_all(result, -7)
            assert is_all(room, -7)

        pid = fork(work)
        child_turn.wait()
        assert is_all(result, number)
        assert is_all(room, number)
        room[:] = 3
        del result, work
        again = [infer(client, 100 + more) for more in range(3)]  # over the same memory
        parent_turn.comes()
        join([pid])
        for more, array in enumerate(again):
            assert is_all(array, 100 + more)
        del again


def a_grandchild_has_copies_of_its_own(client):
    child_turn, parent_turn = Turn(), Turn()
    result = infer(client, 1)

    def grandchild():
        assert is_all(result, 2)
        result[:] = 3
        child_turn.comes()
        parent_turn.wait()
        assert is_all(result, 3)

    def child():
        result[:] = 2
        pid = fork(grandchild)
        child_turn.wait()
        assert is_all(result, 2)
        parent_turn.comes()
        join([pid])

    join([fork(child)])
    assert is_all(result, 1)


def a_child_uses_its_copies_as_any_array(client):
    """They are sent from where they lie, and received into, over a client of its own."""
    result = infer(client, 4)
    room = client.empty(SIZE, np.float32)

    def work():
        room[:] = 5
        echo = client.infer("identity_cpp", {"INPUT0": room})["OUTPUT0"]
        assert is_all(echo, 5)
        client.infer("identity_cpp", {"INPUT0": room}, out={"OUTPUT0": result})
        assert is_all(result, 5)
        client.close()

    room[:] = 6
    join([fork(work)])
    assert is_all(result, 4)
    assert is_all(room, 6)


def results_of_an_async_client(client):
    async def work():
        async with AsyncClient(client.url, shared_memory=True, timeout=60) as other:
            array = np.full(SIZE, 8, np.float32)
            for _ in range(2):
                result = (await other.infer("identity_cpp", {"INPUT0": array}))["OUTPUT0"]
            return result

    result = asyncio.run(work())

    def child():
        assert is_all(result, 8)
        result[:] = -1

    join([fork(child)])
    assert is_all(result, 8)


def a_client_that_is_gone_leaves_its_results_alone(client):
    with Client(client.url, shared_memory=True, timeout=60) as other:
        infer(other, 0)
        result = infer(other, 9)
    del other

    def child():
        assert is_all(result, 9)
        result[:] = -1

    join([fork(child)])
    assert is_all(result, 9)


def a_parent_does_not_wait_for_ever(client):
    """What the child may still copy is leased to nobody again."""
    fork_copies._PATIENCE_S = 0.1
    make_private = fork_copies.make_private

    def slowly(pages):
        time.sleep(1.5)
        make_private(pages)

    fork_copies.make_private = slowly
    result = infer(client, 11)

    def child(result=result):
        assert is_all(result, 11)

    pid = fork(child)
    del child, result
    kept = [infer(client, 20 + more) for more in range(4)]
    join([pid])
    for more, array in enumerate(kept):
        assert is_all(array, 20 + more)


def a_child_that_ends_at_once_holds_nobody_up(client):
    fork_copies._PATIENCE_S = 300.0
    fork_copies.make_private = lambda _: os._exit(0)
    result = infer(client, 12)
    join([fork(lambda: None)])
    assert is_all(result, 12)


def a_future_of_the_parents_ends_in_a_child(client):
    """And at once, whether anybody waited for it or not; the parent's goes on."""
    slow = {"INPUT0": np.zeros(1, np.float32), "DELAY": np.array([2], np.float32)}
    future = client.submit("slow", slow)
    done = client.submit("identity_cpp", {"INPUT0": np.ones(1, np.float32)})
    assert done.result(60)["OUTPUT0"][0] == 1

    def child():
        assert isinstance(future.exception(30), ClosedError)
        assert done.result(30)["OUTPUT0"][0] == 1

    join([fork(child)])
    assert future.result(60)["OUTPUT0"][0] == 0


def nothing_is_noted_where_nothing_is_leased(client):
    pipe, made = os.pipe, []
    fork_copies.os.pipe = lambda: made.append(1) or pipe()
    join([fork(lambda: None)])
    assert not made
    result = infer(client, 1)
    join([fork(lambda: None)])
    assert made
    del result


PROGRAMS = {
    program.__name__: program
    for program in (
        neither_side_sees_what_the_other_writes,
        a_grandchild_has_copies_of_its_own,
        a_child_uses_its_copies_as_any_array,
        results_of_an_async_client,
        a_client_that_is_gone_leaves_its_results_alone,
        a_parent_does_not_wait_for_ever,
        a_child_that_ends_at_once_holds_nobody_up,
        a_future_of_the_parents_ends_in_a_child,
        nothing_is_noted_where_nothing_is_leased,
    )
}
