"""Which answer belongs to which request: the book-keeping of a stream, without one."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_messages import message

from triton_fast import (
    ClosedError,
    InferResult,
    Internal,
    InvalidArgument,
    WireError,
)
from triton_fast.streaming.demux import Inbox, Refusal, ResponseDemux

CALL = "ModelStreamInfer('m')"
# What an answer counts for beside its tensors.
OVERHEAD = 1024


@pytest.fixture
def answers():
    answers = ResponseDemux("host:1")
    yield answers
    vars(answers).clear()  # what nobody has read goes with it, and pytest keeps it for a while


def add(answers, request_id="", inbox=None):
    return answers.add(request_id, CALL, deque() if inbox is None else inbox)


def values(inbox: Inbox):
    """Return what has come: the values, and the errors' texts."""
    return [
        item["y"].item() if isinstance(item, InferResult) else f"{type(item).__name__}: {item}"
        for item in (item.error if isinstance(item, Refusal) else item for item in inbox)
    ]


# Ids ----------------------------------------------------------------------------------------------


def test_ids(answers):
    made = [add(answers, request_id) for request_id in ("x", "", "x", "", "x", "y")]
    assert [one.id for one in made] == ["x", "", "x", "", "x", "y"]
    known = [one.wire_id for one in made]
    assert len(set(known)) == 6
    assert all(known)
    # The server is told the caller's own, where no other has it.
    assert (known[0], known[5]) == ("x", "y")
    assert all(one.startswith("x") for one in (known[2], known[4]))
    assert len(answers) == 6
    answers.deliver([message("x", 1, final=True)])
    assert len(answers) == 5
    assert add(answers, "x").wire_id == "x"


def test_ids_of_different_streams_differ(answers):
    assert add(answers).wire_id != add(ResponseDemux("host:1")).wire_id


def test_withdrawn_requests(answers):
    first = add(answers, "x")
    answers.withdraw(first)
    assert first.over
    assert len(answers) == 0
    assert add(answers, "x").wire_id == "x"
    answers.withdraw(first)  # again, and not the other one
    with pytest.raises(WireError):
        answers.deliver([message("y", 1)])


# Answers -----------------------------------------------------------------------------------------


def test_answers_get_to_their_requests_in_order(answers):
    one, two = add(answers, "x"), add(answers)
    answers.deliver([message("x", 1), message(two.wire_id, 2), message("x", 3)])
    answers.deliver([message(two.wire_id, 4, final=True)])
    assert (values(one.inbox), values(two.inbox)) == ([1, 3], [2, 4])
    assert (one.over, two.over) == (False, True)
    assert [item.id for item in one.inbox] == ["x", "x"]
    assert [item.id for item in two.inbox] == ["", ""]  # as the caller has it
    answers.deliver([message("x", final=True)])
    assert one.over
    assert values(one.inbox) == [1, 3]  # nothing is in it


@pytest.mark.parametrize("final", [True, None])
def test_the_final_answer_may_have_something_in_it(answers, final):
    pending = add(answers)
    answers.deliver([message(pending.wire_id, 1, final=final)])
    assert values(pending.inbox) == [1]
    assert pending.over


def test_a_request_that_is_alone_has_answers_to_the_end_of_the_call(answers):
    """Where the server does not mark the last one."""
    pending = answers.add("x", CALL, deque(), alone=True)
    answers.deliver([message("x", 1, final=None), message("x", 2, final=None)])
    assert not pending.over
    answers.end()
    assert pending.over
    assert values(pending.inbox) == [1, 2]
    assert not len(answers)
    refused = answers.add("y", CALL, deque(), alone=True)
    answers.deliver([message("y", error="no such model", final=None)])
    assert refused.over


def test_several_answers_where_none_says_that_it_is_the_last(answers):
    """To one of many requests on a stream: it is over with the first, and the second says why."""
    pending = add(answers, "x")
    answers.deliver([message("x", 1, final=None)])
    assert pending.over
    with pytest.raises(WireError, match=r"'x', which has had one already.* use client.stream"):
        answers.deliver([message("x", 2, final=None)])


@pytest.mark.parametrize("messages", [[], [False], [None, False]])
def test_a_call_that_ends_before_the_last_answer(answers, messages):
    """A server that marks answers has not marked the last one; or nothing came at all."""
    pending = answers.add("x", CALL, deque(), alone=True)
    answers.deliver([message("x", 1, final=final) for final in messages])
    answers.end()
    assert not pending.over
    shared = add(answers, "y")
    answers.end()
    assert not shared.over


def test_an_answer_without_outputs_that_is_not_final(answers):
    pending = add(answers)
    answers.deliver([message(pending.wire_id)])
    assert [len(item) for item in pending.inbox] == [0]
    assert not pending.over


def test_errors(answers):
    one, two = add(answers, "x"), add(answers, "y")
    answers.deliver([message("x", 1), message("x", error="it broke"), message("x", 2)])
    answers.deliver([message("y", error="[request id: y] unexpected shape", final=None)])
    assert values(one.inbox) == [1, f"Internal: {CALL} at host:1: INTERNAL: it broke", 2]
    assert not one.over
    ((error, about),) = two.inbox
    assert about is two
    assert type(error) is InvalidArgument
    assert (error.message, error.call, error.target) == ("unexpected shape", CALL, "host:1")
    assert two.over  # found before the model had it, and nothing more comes


def test_answers_that_nobody_asked_for(answers):
    pending = add(answers, "x")
    with pytest.raises(WireError, match="'y', which was not made or has had its last answer"):
        answers.deliver([message("x", 1), message("y", 2), message("x", 3)])
    assert values(pending.inbox) == [1]
    answers.deliver([message("x", final=True)])
    with pytest.raises(WireError, match="'x'"):
        answers.deliver([message("x", 1)])
    with pytest.raises(Internal, match="all is lost") as caught:
        answers.deliver([message("", error="all is lost")])
    assert (caught.value.call, caught.value.target) == ("ModelStreamInfer", "host:1")


def test_requests_that_nobody_reads_any_more(answers):
    dropped, other = add(answers, "x"), add(answers, "y")
    dropped.unwanted = True
    answers.deliver([message("x", 1), message("x", error="no"), message("y", 2)])
    assert (values(dropped.inbox), values(other.inbox)) == ([], [2])
    assert not dropped.over
    answers.deliver([message("x", 3, final=True)])
    assert dropped.over
    assert values(dropped.inbox) == []
    answers.fail(ClosedError("closed"))
    assert values(dropped.inbox) == []


def test_the_end_of_all(answers):
    shared: Inbox = deque()
    one, two, three = add(answers, "x"), add(answers, "", shared), add(answers, "", shared)
    answers.deliver([message("x", 1)])
    answers.fail(ClosedError("closed"))
    assert values(one.inbox) == [1, "ClosedError: closed"]
    assert values(shared) == ["ClosedError: closed"] * 2  # one for each
    assert one.over
    assert two.over
    assert three.over
    assert len(answers) == 0
    answers.fail(ClosedError("again"))
    assert len(one.inbox) == 2


# What is unread -----------------------------------------------------------------------------------


def test_what_is_unread_is_counted(answers):
    one, two = add(answers, "x"), add(answers, "y")
    assert answers.unread(1) == 0
    answers.deliver([message("x", range(100)), message("y", 1), message("x", error="no")])
    expected = 3 * OVERHEAD + 800 + 8
    assert answers.unread(1) == expected
    # Below the limit it may be out of date; from there on it is exact.
    one.inbox.popleft()
    assert answers.unread(10**6) >= expected - OVERHEAD - 800
    assert answers.unread(1) == 2 * OVERHEAD + 8
    two.inbox.clear()
    one.inbox.clear()
    assert answers.unread(1) == 0


def test_those_of_requests_that_are_over_count(answers):
    """Or a stream of single answers had no limit."""
    made = [add(answers) for _ in range(300)]
    answers.deliver([message(one.wire_id, [0] * 10, final=True) for one in made])
    assert len(answers) == 0
    assert answers.unread(1) == 300 * (OVERHEAD + 80)
    for one in made[:200]:
        one.inbox.clear()
    assert answers.unread(1) == 100 * (OVERHEAD + 80)
    answers.fail(ClosedError("closed"))


def test_nothing_is_kept_of_what_was_read(answers):
    for _ in range(5000):
        pending = add(answers)
        answers.deliver([message(pending.wire_id, 1, final=True)])
        pending.inbox.clear()
    assert len(answers._left) <= 200


def test_text_counts_as_long_as_it_is(answers):
    pending = add(answers)
    answers.deliver([message(pending.wire_id, [b"x" * 5000, b"y"])])
    assert answers.unread(1) == OVERHEAD + 5001


def test_an_inbox_of_several_requests_counts_once(answers):
    shared: Inbox = deque()
    made = [add(answers, "", shared) for _ in range(3)]
    answers.deliver([message(one.wire_id, 1) for one in made])
    answers.deliver([message(made[0].wire_id, 1, final=True)])
    assert answers.unread(1) == 4 * (OVERHEAD + 8)


def test_others_may_read_while_it_is_counted(answers):
    """Another thread's turn comes when it likes."""
    pending = add(answers)
    answers.deliver([message(pending.wire_id, 1) for _ in range(5)])

    class Slippery(InferResult):
        def values(self):
            pending.inbox.popleft()
            return super().values()

    pending.inbox.insert(1, Slippery("m", "1", "", {}, {}))
    assert answers.unread(1) == 5 * (OVERHEAD + 8) + OVERHEAD


def test_what_was_taken_is_known_at_once(answers):
    pending = add(answers)
    answers.deliver([message(pending.wire_id, 1) for _ in range(10)])
    limit = 4 * (OVERHEAD + 8)
    assert answers.unread(limit) == 10 * (OVERHEAD + 8)
    for left in range(9, 3, -1):
        assert answers.took(pending.inbox.popleft(), limit) == left * (OVERHEAD + 8)
    # More were taken than was said: below the limit it is counted.
    pending.inbox.popleft()
    assert answers.took(pending.inbox.popleft(), limit) == 2 * (OVERHEAD + 8)


# Any interleaving ---------------------------------------------------------------------------------


@st.composite
def requests(draw):
    """A request's id, and what comes for it: numbers, errors, and how the end is told."""
    return (
        draw(st.sampled_from(["", "a", "b", "a-b"])),
        draw(st.lists(st.one_of(st.integers(0, 9), st.just("no")), max_size=4)),
        draw(st.sampled_from(["with the last", "by itself", "not"])),
    )


# Time limits are pytest's business: a busy machine has slow moments. The same examples every time.
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(requests(), max_size=12), st.randoms(use_true_random=False), st.booleans())
def test_each_request_gets_its_own_answers_in_order(made, random, one_inbox):
    answers = ResponseDemux("host:1")
    shared: Inbox = deque()
    waiting = list(made)
    running = []
    all_of_them = []
    came = []  # all, in order
    while waiting or running:
        if waiting and (not running or random.random() < 0.4):
            request_id, contents, end = waiting.pop()
            inbox = shared if one_inbox else deque()
            pending = answers.add(request_id, CALL, inbox)
            assert all(pending.wire_id != one.wire_id for one, _, _ in running)
            script = list(contents)
            if end == "by itself" or not script or script[-1] == "no":
                script.append(None)
            running.append((pending, script, end))
            all_of_them.append((pending, request_id, contents))
        else:
            number = random.randrange(len(running))
            pending, script, end = running[number]
            content = script.pop(0)
            last = not script
            assert not pending.over
            answers.deliver(
                [
                    message(
                        pending.wire_id,
                        content if isinstance(content, int) else None,
                        error="no" if content == "no" else "",
                        final=(None if last and end == "not" else last),
                    )
                ]
            )
            if content is not None:
                came.append(content)
            if last:
                running.pop(number)
            assert pending.over == last
    assert len(answers) == 0
    for pending, request_id, contents in all_of_them:
        assert pending.over
        if not one_inbox:
            assert contents_of(pending.inbox) == contents
            assert ids_of(pending.inbox) <= {request_id}
    if one_inbox:
        assert contents_of(shared) == came
        assert ids_of(shared) <= {request_id for _, request_id, _ in all_of_them}


def contents_of(inbox):
    return [item["y"].item() if isinstance(item, InferResult) else "no" for item in inbox]


def ids_of(inbox):
    return {item.id for item in inbox if isinstance(item, InferResult)}
