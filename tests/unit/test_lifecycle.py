"""Who has a turn at a fork and at an exit, in which order, and what a turn that fails does."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
from support.interpreter import run_python

from triton_fast.channels.lifecycle import Lifecycle, Phase

MOMENTS = {
    "before": [Phase.BEFORE_FORK],
    "parent": [Phase.AFTER_FORK_IN_PARENT],
    "child": [
        Phase.CHILD_IMPORTS,
        Phase.CHILD_STREAMS,
        Phase.CHILD_CHANNELS,
        Phase.CHILD_ENDPOINTS,
    ],
    "late in child": [Phase.CHILD_GRPCIO],
    "exit": [Phase.EXIT_STREAMS, Phase.EXIT_SHARED_MEMORY],
    "arrays": [Phase.BEFORE_FORK_ARRAYS, Phase.AFTER_FORK_ARRAYS, Phase.CHILD_ARRAYS],
}

# Each script runs in an interpreter of its own.
PRELUDE = """
    import multiprocessing, os, sys
    from triton_fast.channels import lifecycle
    from triton_fast.channels.lifecycle import Phase, watch

    class Thing:
        pass

    thing = Thing()

    def say(text):
        os.write(1, f"{text}\\n".encode())

    def saying(phase):
        return lambda thing: say(phase.name)

    def failing(thing):
        say("failing")
        raise OSError("as planned")

    def forked(work=lambda: None):
        pid = os.fork()
        if not pid:
            work()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
"""


def run(script: str, **options: bool) -> list[str]:
    return run_python(PRELUDE + script, **options).splitlines()


class Thing:
    """Something that has turns."""


@pytest.fixture
def registry(monkeypatch):
    """A registry that the interpreter is not told of."""
    registry = Lifecycle()
    monkeypatch.setattr(registry, "_hook", lambda phase: None)
    return registry


@pytest.fixture
def saw():
    return []


# The order ----------------------------------------------------------------------------------------


def test_every_phase_is_of_one_moment():
    assert sorted(p.name for ps in MOMENTS.values() for p in ps) == sorted(p.name for p in Phase)


def test_phases_come_in_their_order_whatever_asks_first(registry, saw):
    thing = Thing()
    phases = MOMENTS["exit"]
    for phase in reversed(phases):
        registry.watch({phase: lambda _, phase=phase: saw.append(phase)}).add(thing)
    registry.run(phases)
    assert saw == phases


def test_all_of_a_phase_come_before_any_of_the_next(registry, saw):
    first, second = Phase.EXIT_STREAMS, Phase.EXIT_SHARED_MEMORY
    things = [Thing() for _ in range(3)]
    for _ in range(2):
        group = registry.watch(
            {second: lambda _: saw.append(second), first: lambda _: saw.append(first)}
        )
        for thing in things:
            group.add(thing)
    registry.run([first, second])
    assert saw == [first] * 6 + [second] * 6


def test_only_the_phases_that_are_run_have_turns(registry, saw):
    thing = Thing()
    registry.watch(dict.fromkeys(Phase, saw.append)).add(thing)
    registry.run([Phase.CHILD_CHANNELS])
    assert saw == [thing]


def test_at_exit():
    script = """
    for phase in reversed(Phase):
        watch({phase: saying(phase)}).add(thing)
    say("over")
    """
    assert run(script, quiet=True) == ["over", *(phase.name for phase in MOMENTS["exit"])]


def test_around_a_fork():
    """Those for grpcio enclose the hooks that were there when they were first asked for."""
    script = """
    for phase in reversed(Phase):
        if phase.name.startswith("CHILD") and not phase.name.endswith(("GRPCIO", "ARRAYS")):
            watch({phase: saying(phase)}).add(thing)
    os.register_at_fork(
        before=lambda: say("before"),
        after_in_parent=lambda: say("in parent"),
        after_in_child=lambda: say("in child"),
    )
    watch({phase: saying(phase) for phase in (
        Phase.CHILD_GRPCIO, Phase.AFTER_FORK_IN_PARENT, Phase.BEFORE_FORK
    )}).add(thing)
    forked(lambda: say("child"))
    """
    told = run(script, quiet=True)
    in_child = [
        *(phase.name for phase in MOMENTS["child"]),
        *("in child", "CHILD_GRPCIO", "child"),
    ]
    assert told[:2] == ["BEFORE_FORK", "before"]
    assert [line for line in told if line in in_child] == in_child
    assert [line for line in told[2:] if line not in in_child] == [
        "in parent",
        "AFTER_FORK_IN_PARENT",
    ]


def test_arrays_around_a_fork():
    script = """
    watch({phase: saying(phase) for phase in Phase if phase.name.endswith("ARRAYS")}).add(thing)
    forked(lambda: say("child"))
    """
    told = run(script, quiet=True)
    assert told[0] == "BEFORE_FORK_ARRAYS"
    assert [line for line in told if "CHILD" in line.upper()] == ["CHILD_ARRAYS", "child"]
    assert "AFTER_FORK_ARRAYS" in told


# Who is there -------------------------------------------------------------------------------------


def test_things_are_not_kept(registry, saw):
    group = registry.watch({Phase.EXIT_STREAMS: lambda thing: saw.append(thing.name)})
    kept, dropped = Thing(), Thing()
    kept.name, dropped.name = "kept", "dropped"
    group.add(kept)
    group.add(dropped)
    del dropped
    gc.collect()
    registry.run([Phase.EXIT_STREAMS])
    assert saw == ["kept"]


def test_things_that_a_turn_adds_wait_for_the_next_time(registry, saw):
    def turn(thing):
        saw.append(thing)
        made.append(Thing())
        group.add(made[-1])

    made = [Thing()]
    group = registry.watch({Phase.CHILD_ENDPOINTS: turn})
    group.add(made[0])
    registry.run([Phase.CHILD_ENDPOINTS])
    assert len(saw) == 1
    registry.run([Phase.CHILD_ENDPOINTS])
    assert len(saw) == 3


def test_threads_that_add_things_disturb_nothing(registry):
    """As daemon threads may at exit."""
    group = registry.watch({Phase.EXIT_SHARED_MEMORY: lambda _: None})
    kept = [Thing() for _ in range(200)]
    over = threading.Event()

    def add():
        while not over.is_set():
            for thing in kept:
                group.add(thing)
            group.clear()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=add)
    thread.start()
    try:
        for _ in range(300):
            registry.run([Phase.EXIT_SHARED_MEMORY])
    finally:
        sys.setswitchinterval(before)
        over.set()
        thread.join()


def test_a_child_is_told_as_its_parent_was():
    script = """
    watch({Phase.CHILD_STREAMS: lambda thing: say(thing.name)}).add(thing)
    thing.name = "child"
    def generation():
        thing.name = "grandchild"
        forked()
    forked(generation)
    """
    assert run(script, quiet=True) == ["child", "grandchild"]


# What fails ---------------------------------------------------------------------------------------


def test_one_that_fails_takes_nobodys_turn(registry, saw):
    def turn(thing):
        saw.append(thing)
        raise KeyboardInterrupt

    one, other = Thing(), Thing()
    group = registry.watch({Phase.EXIT_STREAMS: turn})
    registry.watch({Phase.EXIT_SHARED_MEMORY: saw.append}).add(other)
    group.add(one)
    with pytest.raises(KeyboardInterrupt):
        registry.run(MOMENTS["exit"])
    assert saw == [one, other]


def test_several_that_fail_are_all_told(registry):
    def turn(thing):
        raise thing.error

    things = [Thing(), Thing()]
    group = registry.watch({Phase.EXIT_STREAMS: turn})
    for thing, error in zip(things, (OSError(1), SystemExit(2)), strict=True):
        thing.error = error
        group.add(thing)
    with pytest.raises(BaseExceptionGroup) as told:
        registry.run(MOMENTS["exit"])
    assert set(told.value.exceptions) == {thing.error for thing in things}


def test_the_interpreter_says_what_failed():
    """And ends, forks and goes on as with any hook that fails."""
    script = """
    unraised = []
    sys.unraisablehook = lambda args: unraised.append(str(args.exc_value))
    watch({phase: failing for phase in (
        Phase.BEFORE_FORK, Phase.AFTER_FORK_IN_PARENT, Phase.CHILD_CHANNELS, Phase.EXIT_STREAMS
    )}).add(thing)
    watch({phase: saying(phase) for phase in Phase}).add(thing)
    def child():
        assert unraised == ["as planned"] * 2, unraised
    forked(child)
    assert unraised == ["as planned"] * 2, unraised
    say("over")
    """
    told = run(script)
    assert told.count("failing") == 4
    assert {phase.name for phase in Phase} <= set(told)
    at_exit = told[told.index("over") + 1 :]
    assert at_exit == ["failing", *(phase.name for phase in MOMENTS["exit"])]


# Processes of multiprocessing ---------------------------------------------------------------------


def test_a_process_of_multiprocessing_runs_the_exit():
    """It runs nothing of atexit's. Asked for twice, it is run once."""
    script = """
    for phase in Phase:
        if phase.name.startswith("EXIT"):
            watch({phase: saying(phase)}).add(thing)
    lifecycle.run_exit_in_multiprocessing()  # which is for nothing: the children are told anew

    def work(depth):
        say("working")
        lifecycle.run_exit_in_multiprocessing()
        lifecycle.run_exit_in_multiprocessing()
        if depth:
            run(depth - 1)

    def run(depth):
        process = multiprocessing.get_context("fork").Process(target=work, args=(depth,))
        process.start()
        process.join()
        assert process.exitcode == 0

    run(1)
    say("over")
    """
    ends = [phase.name for phase in MOMENTS["exit"]]
    assert run(script, quiet=True) == ["working", "working", *ends, *ends, "over", *ends]


def test_a_program_that_uses_multiprocessing_ends_once():
    """Its hooks of atexit's are run, after those that are there later than the client."""
    script = """
    import atexit
    watch({Phase.EXIT_SHARED_MEMORY: saying(Phase.EXIT_SHARED_MEMORY)}).add(thing)
    atexit.register(say, "the program's own")
    lifecycle.run_exit_in_multiprocessing()
    """
    assert run(script, quiet=True) == ["the program's own", "EXIT_SHARED_MEMORY"]
