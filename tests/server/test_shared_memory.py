"""Shared memory with a real server: who writes where, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import numpy as np
import pytest
from support.model_calls import counts
from support.process import segments
from support.sharing import BIG, array, figures, in_slot, pool
from support.waiting import until

from triton_fast import (
    AlreadyExists,
    Client,
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidOption,
    InvalidTensor,
    RequestedOutput,
    ResourceExhausted,
    SharedMemoryError,
    SharedMemoryRegion,
    Tensor,
    TritonFastError,
)

pytestmark = pytest.mark.server

OURS = {os.getpid()}  # processes whose files are these tests' business


def files():
    """Return the files of this process, and of those that it has started."""
    return segments(*OURS)


def python(program, *options, **more):
    """Start a program whose files are our business, too."""
    process = subprocess.Popen(
        [sys.executable, *options, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )
    OURS.add(process.pid)
    return process


def output_of(program):
    """Run a program to its end; return what it said, complaints too."""
    with python(
        program, "-W", "error", "-W", "ignore::DeprecationWarning", stderr=subprocess.STDOUT
    ) as process:
        return process.communicate(timeout=60)[0]


MODELS = ["identity_cpp", "identity_cpp_bytes", "identity_batched", "identity_mixed", "variable"]


@pytest.fixture
def sharing_server(shared_server):
    """One of our own: other tests may have left regions with theirs."""
    return shared_server(models=[*MODELS, "slow", "late", "cancellations"])


@pytest.fixture
def sharing_client(sharing_server, channel):
    with Client(sharing_server.grpc_url, channel=channel, shared_memory=True, timeout=60) as client:
        yield client
    assert not files()
    with Client(sharing_server.grpc_url, shared_memory=False) as witness:
        assert not witness.shared_memory.registered()


def echo(client, data, **options):
    return client.infer("identity_cpp", {"INPUT0": data}, **options)["OUTPUT0"]


def test_inputs_and_outputs_go_through_slots(sharing_client, placements):
    for seed in range(5):
        data = array(seed)
        answer = echo(sharing_client, data)
        np.testing.assert_array_equal(answer, data)
        assert answer.flags.writeable
        assert answer.flags.c_contiguous
        # The first answer says how large the next ones will be.
        assert in_slot(sharing_client, answer) == (seed > 0)
    assert [len(placement.slots) for placement in placements] == [1, 2, 2, 2, 2]
    assert not files(), "unlinked while they are in use"


def test_small_tensors_stay_on_the_wire(sharing_client, placements):
    for _ in range(3):
        np.testing.assert_array_equal(echo(sharing_client, array(1, 16)), array(1, 16))
    assert not placements
    assert figures(sharing_client)["byte_size"] == 0


def test_a_slot_goes_back_with_its_last_array(sharing_client):
    echo(sharing_client, array(0))
    answer = echo(sharing_client, array(1))
    part = answer[10:20]
    del answer
    assert figures(sharing_client)["leased"] == 1
    np.testing.assert_array_equal(part, array(1)[10:20])
    del part
    assert figures(sharing_client)["leased"] == 0


def test_results_outlive_the_client(sharing_server, channel):
    with Client(sharing_server.grpc_url, channel=channel, shared_memory=True) as client:
        echo(client, array(0))
        answer = echo(client, array(1))
        assert in_slot(client, answer)
    del client
    gc.collect()
    np.testing.assert_array_equal(answer, array(1))
    answer[:] = 0


@pytest.mark.parametrize(
    "copied",
    [lambda result: pickle.loads(pickle.dumps(result)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copies_of_a_result_hold_no_slot(sharing_client, copied):
    def infer():
        return sharing_client.infer("identity_cpp", {"INPUT0": array(1)})

    infer()
    result = infer()
    assert in_slot(sharing_client, result["OUTPUT0"])
    twin = copied(result)
    assert not in_slot(sharing_client, twin["OUTPUT0"])
    del result
    assert figures(sharing_client)["leased"] == 0
    infer()
    np.testing.assert_array_equal(twin["OUTPUT0"], array(1))


def test_empty_is_sent_and_filled_in_place(sharing_client, placements):
    data, out = sharing_client.empty((BIG,), np.float32), sharing_client.empty(BIG, "f4")
    echo(sharing_client, array(0))
    for seed in range(3):
        data[:] = array(seed)
        answer = echo(sharing_client, data, out={"OUTPUT0": out})
        assert answer is out
        np.testing.assert_array_equal(out, array(seed))
    assert all(slot.lease is None for slot in placements[-1].slots)
    # A part of one lies in the slot too.
    np.testing.assert_array_equal(echo(sharing_client, data[: BIG // 2]), array(2)[: BIG // 2])
    assert placements[-1].slots[0].lease is None
    # A copy is made of what is not contiguous.
    np.testing.assert_array_equal(echo(sharing_client, data[::2]), array(2)[::2])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_empty_of_any_shape(sharing_client, shape):
    made = sharing_client.empty(shape, np.int16)
    assert (made.shape, made.dtype) == (shape, np.int16)
    made[...] = 7
    assert (made == 7).all()


def test_there_are_no_shared_arrays_of_objects(sharing_client):
    for shape, dtype in (((3,), object), ((-1,), np.float32), ("x", np.float32), (3, "nonsense")):
        with pytest.raises(InvalidTensor):
            sharing_client.empty(shape, dtype)


def test_out_arrays_of_the_callers(sharing_client):
    out = np.empty(BIG, np.float32)
    for seed in range(3):
        assert echo(sharing_client, array(seed), out={"OUTPUT0": out}) is out
        np.testing.assert_array_equal(out, array(seed))
    wrong = np.empty(BIG - 1, np.float32)
    with pytest.raises(InvalidTensor, match=r"out\['OUTPUT0'\] is float32"):
        echo(sharing_client, array(0), out={"OUTPUT0": wrong})
    shared = sharing_client.empty((BIG // 2, 2), np.float32)
    with pytest.raises(InvalidTensor, match=r"out\['OUTPUT0'\] is float32"):
        echo(sharing_client, array(0), out={"OUTPUT0": shared})
    assert figures(sharing_client)["quarantined"] == 0, "the server was done"
    np.testing.assert_array_equal(echo(sharing_client, array(0)), array(0))


def test_answers_that_grow_and_shrink(sharing_client, caplog):
    """The server says that a slot is too small, and the call is made again, unseen."""
    caplog.set_level(logging.INFO, "triton_fast")
    sizes = [BIG, BIG, 3 * BIG, BIG // 2, 4, 5 * BIG, BIG]
    for number, size in enumerate(sizes):
        data = array(number, size)
        np.testing.assert_array_equal(echo(sharing_client, data), data)
    row = np.ones(BIG, np.float32)
    for count in (1, 5, 2, 9, 9):
        result = sharing_client.infer(
            "variable", {"ROW": row, "COUNT": np.array([count], np.int32)}
        )
        assert result["TILED"].shape == (count, BIG)
        assert (result["TILED"] == 1).all()
        assert result["TWICE"].shape == (2 * BIG,)
    told = [record.getMessage() for record in caplog.records]
    assert sum("ran twice" in text and "'TILED'" in text for text in told) == 1, told


def test_a_request_of_a_sequence_is_made_once(sharing_client, caplog):
    """A model with state would count it twice: its outputs come over the wire, its inputs not."""
    caplog.set_level(logging.INFO, "triton_fast")
    row = np.ones(BIG, np.float32)

    def tiled(count, **more):
        inputs = {"ROW": row, "COUNT": np.array([count], np.int32)}
        return sharing_client.infer("variable", inputs, **more)["TILED"]

    for _ in range(2):
        known = tiled(1)
    assert in_slot(sharing_client, known)
    for count in (1, 3, 2):
        parameters = {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
        answer = tiled(count, parameters=parameters)
        assert not in_slot(sharing_client, answer)
        assert answer.shape == (count, BIG)
    with sharing_client.sequence("variable", stream=False) as sequence:
        for count in (1, 4):
            inputs = {"ROW": row, "COUNT": np.array([count], np.int32)}
            assert sequence.infer(inputs)["TILED"].shape == (count, BIG)
    assert not [record for record in caplog.records if "ran twice" in record.getMessage()]


def test_batches_scale_what_was_learnt(sharing_client, placements, caplog):
    caplog.set_level(logging.INFO, "triton_fast")
    for rows in (2, 8, 4, 8, 1):
        data = np.random.default_rng(rows).standard_normal((rows, BIG // 4), np.float32)
        answer = sharing_client.infer("identity_batched", {"INPUT0": data})["OUTPUT0"]
        np.testing.assert_array_equal(answer, data)
    assert not [record for record in caplog.records if "ran twice" in record.getMessage()]
    assert [len(placement.outputs) for placement in placements] == [0, 1, 1, 1, 1]


def test_strings_go_in_through_slots_and_out_on_the_wire(sharing_client, placements):
    texts = [f"{number:>60}".encode() for number in range(20_000)]
    for _ in range(3):
        result = sharing_client.infer("identity_cpp_bytes", {"INPUT0": texts})
        assert result["OUTPUT0"].tolist() == texts
    assert [(len(p.slots), len(p.outputs)) for p in placements] == [(1, 0)] * 3


def test_a_tensor_of_raw_memory(sharing_client):
    data = array(3)
    for _ in range(2):
        answer = echo(sharing_client, Tensor(data.tobytes(), "FP32", [BIG]))
        np.testing.assert_array_equal(answer, data)
        # With parameters of its own, beside those that say where it is.
        answer = echo(sharing_client, Tensor(data, parameters={"key": "value"}))
        np.testing.assert_array_equal(answer, data)


def test_some_outputs_on_the_wire_and_some_not(sharing_client):
    inputs = {
        "INPUT0": array(0),
        "INPUT1": np.arange(5, dtype=np.int32),
        "INPUT2": np.array([b"a", b"", b"ccc"], object),
    }
    for _ in range(3):
        result = sharing_client.infer("identity_mixed", inputs)
        assert list(result) == ["OUTPUT0", "OUTPUT1", "OUTPUT2"]
        for index in range(3):
            np.testing.assert_array_equal(result[f"OUTPUT{index}"], inputs[f"INPUT{index}"])
    assert in_slot(sharing_client, result["OUTPUT0"])
    assert not in_slot(sharing_client, result["OUTPUT1"])
    some = sharing_client.infer("identity_mixed", inputs, outputs=["OUTPUT2", "OUTPUT0"])
    assert set(some) == {"OUTPUT0", "OUTPUT2"}


def test_parameters_go_along(sharing_client):
    for _ in range(3):
        result = sharing_client.infer(
            "identity_cpp", {"INPUT0": array(0)}, parameters={"key": "value"}, request_id="one"
        )
        assert (result.id, result.parameters["key"]) == ("one", "value")


def test_submit(sharing_client):
    echo(sharing_client, array(0))
    futures = [
        sharing_client.submit("identity_cpp", {"INPUT0": array(seed)}, timeout=60)
        for seed in range(12)
    ]
    for seed, future in enumerate(futures):
        np.testing.assert_array_equal(future.result()["OUTPUT0"], array(seed))
    del future, futures
    assert figures(sharing_client)["leased"] == 0


def test_submit_repairs_what_infer_repairs(sharing_client):
    echo(sharing_client, array(0))
    data = array(1, 6 * BIG)
    np.testing.assert_array_equal(
        sharing_client.submit("identity_cpp", {"INPUT0": data}).result(60)["OUTPUT0"], data
    )


def test_threads(sharing_client):
    failures = []

    def work(seed):
        try:
            for number in range(15):
                data = array(100 * seed + number, BIG // 2 + 1000 * number)
                np.testing.assert_array_equal(echo(sharing_client, data), data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert figures(sharing_client)["leased"] == 0


def test_split_is_written_in_place(sharing_client):
    data = np.random.default_rng(0).standard_normal((30, BIG // 8), np.float32)
    result = sharing_client.infer("identity_batched", {"INPUT0": list(data)}, split=True)
    np.testing.assert_array_equal(result["OUTPUT0"], data)
    assert in_slot(sharing_client, result["OUTPUT0"])


# What goes wrong ---------------------------------------------------------------------------------


@pytest.mark.server_may_die
def test_a_call_that_is_given_up_never_shares_its_slots(sharing_server, channel):
    """The model writes its answer long after the client has gone, wherever it was told to."""
    with Client(sharing_server.grpc_url, channel=channel, shared_memory=True, timeout=60) as client:

        def done():
            options = client._endpoint.options("ModelStatistics")
            told = client._endpoint.exchange("ModelStatistics", {"name": "late"}, options)
            counts = told.model_stats[0].inference_stats
            return counts.success.count + counts.fail.count

        late = {"INPUT0": np.full(BIG, 13, np.float32), "LATE": np.zeros(1, np.float32)}
        client.infer("late", late)  # how large its answer is
        del late["LATE"]
        echo(client, array(0))
        before = done()
        with pytest.raises(DeadlineExceeded):
            client.infer("late", {**late, "LATE": np.array([2], np.float32)}, timeout=0.5)
        assert figures(client)["quarantined"] == 2
        answers = [echo(client, array(seed)) for seed in range(6)]
        until(lambda: done() == before + 1)
        for seed, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, array(seed))
        assert figures(client)["quarantined"] == 2
        give_up(client)
        assert figures(client)["quarantined"] == 3


def give_up(client):
    """Give up a call whose input is in shared memory, while the model has it."""
    slow = {"INPUT0": array(0), "DELAY": np.array([90], np.float32)}
    future = client.submit("slow", slow)
    until(lambda: counts(client)[1] == 1)
    assert future.cancel()
    until(lambda: counts(client)[1] == 0)


@pytest.mark.server_may_die
def test_quarantined_memory_comes_back(sharing_server, channel):
    """A region whose slots were given up is replaced, once nothing else is in it."""
    limit = 4 * 4 * BIG
    with Client(
        sharing_server.grpc_url,
        channel=channel,
        shared_memory=True,
        shared_memory_limit=limit,
        timeout=60,
    ) as client:
        for number in range(6):
            echo(client, array(number))
            give_up(client)  # the server lets go of the region
        np.testing.assert_array_equal(echo(client, array(9)), array(9))
        assert figures(client)["byte_size"] <= limit
    assert not files()


def test_when_all_is_leased(sharing_server, channel):
    limit = 16 * BIG
    with Client(
        sharing_server.grpc_url,
        channel=channel,
        shared_memory=True,
        shared_memory_limit=limit,
        timeout=60,
    ) as client:
        kept = [client.empty(BIG, np.float32) for _ in range(4)]
        with pytest.raises(DeadlineExceeded, match=r"4194304 bytes are leased, in 4 slots"):
            echo(client, array(0), timeout=0.3)
        with pytest.raises(ResourceExhausted, match="raise its shared_memory_limit"):
            echo(client, array(0, 5 * BIG))
        # It goes on as soon as a slot comes back.
        threading.Timer(0.2, kept.pop).start()
        np.testing.assert_array_equal(echo(client, array(0)), array(0))


def test_when_all_is_leased_and_the_wire_will_do(sharing_server, channel, caplog):
    with Client(
        sharing_server.grpc_url, channel=channel, shared_memory_limit=16 * BIG, timeout=60
    ) as client:
        kept = [echo(client, array(seed)) for seed in range(12)]
        for seed, answer in enumerate(kept):
            np.testing.assert_array_equal(answer, array(seed))
        assert client.empty(BIG, np.float32).shape == (BIG,)
        np.testing.assert_array_equal(echo(client, array(0, 9 * BIG)), array(0, 9 * BIG))
    assert len(caplog.records) <= 1


def test_no_room_in_dev_shm(sharing_client):
    # More than there can ever be: what is only more than is free would be allocated first.
    there_is = os.statvfs("/dev/shm")
    too_much = there_is.f_blocks * there_is.f_frsize + (64 << 20)
    pool(sharing_client)._limit = 1 << 60
    with pytest.raises(SharedMemoryError, match="No space left") as raised:
        sharing_client.empty(too_much, np.uint8)
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, TritonFastError)
    assert not files()
    np.testing.assert_array_equal(echo(sharing_client, array(0)), array(0))


@pytest.fixture(scope="module")
def server_to_restart(triton_server_factory):
    return triton_server_factory(models=["identity_cpp"])


def test_a_server_that_is_started_anew(server_to_restart, channel, caplog):
    caplog.set_level(logging.DEBUG, "triton_fast")
    with Client(
        server_to_restart.grpc_url, channel=channel, shared_memory=True, timeout=60
    ) as client:
        mine = client.empty(BIG, np.float32)
        mine[:] = array(77)
        before = [echo(client, array(seed)) for seed in range(3)]
        server_to_restart.kill()
        server_to_restart.start()
        for seed in range(3):
            np.testing.assert_array_equal(echo(client, array(seed)), array(seed))
            np.testing.assert_array_equal(before[seed], array(seed))
        np.testing.assert_array_equal(echo(client, mine), array(77))
        future = client.submit("identity_cpp", {"INPUT0": array(5)})
        np.testing.assert_array_equal(future.result(60)["OUTPUT0"], array(5))
        assert len(client.shared_memory.registered()) == 1
    assert not files()


def test_a_neighbour_that_unregisters_everything(sharing_client):
    """tritonclient's unregister_system_shared_memory() without a name does that."""
    echo(sharing_client, array(0))
    deadline = time.monotonic() + 60
    while sharing_client.shared_memory.registered():
        # Triton 2.51 refuses for a moment after a call has used a region.
        with contextlib.suppress(Internal):
            sharing_client._endpoint.exchange(
                "SystemSharedMemoryUnregister",
                {"name": ""},
                sharing_client._endpoint.options("all"),
            )
        assert time.monotonic() < deadline
    for seed in range(3):
        np.testing.assert_array_equal(echo(sharing_client, array(seed)), array(seed))


@pytest.mark.server_may_die
def test_two_processes(sharing_server):
    """One opens and closes clients in a loop, and the other is not disturbed."""
    program = f"""
        import numpy as np
        from triton_fast import Client
        data = np.ones({BIG}, np.float32)
        while True:
            with Client({sharing_server.grpc_url!r}, shared_memory=True) as client:
                assert (client.infer("identity_cpp", {{"INPUT0": data}})["OUTPUT0"] == 1).all()
            print("once more", flush=True)
        """
    other = python(program)
    try:
        assert other.stdout.readline() == "once more\n"
        with Client(sharing_server.grpc_url, shared_memory=True, timeout=60) as client:
            for _ in range(12):
                for _ in range(5):
                    np.testing.assert_array_equal(echo(client, array(1)), array(1))
                assert other.stdout.readline() == "once more\n"
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with Client(sharing_server.grpc_url, shared_memory=False) as client:
        for region in client.shared_memory.stale():
            assert region.pid == other.pid
            client.shared_memory.unregister(region.name)
        assert not client.shared_memory.registered()
    with Client(sharing_server.grpc_url, shared_memory=True) as client:
        client.empty(1, np.int8)  # removes what was left if it was killed while it registered
    assert not files()


@pytest.mark.server_may_die
def test_killed_clients_leave_no_files_and_can_be_told(sharing_server):
    program = f"""
        import numpy as np
        from triton_fast import Client
        client = Client({sharing_server.grpc_url!r}, shared_memory=True)
        data = np.ones({BIG}, np.float32)
        print("ready", flush=True)
        while True:
            client.infer("identity_cpp", {{"INPUT0": data}})
        """
    rng = np.random.default_rng()
    with Client(sharing_server.grpc_url, shared_memory=False) as witness:
        victims = [python(program) for _ in range(4)]
        for victim in victims:
            assert victim.stdout.readline() == "ready\n"
        for number, victim in enumerate(victims, start=1):
            time.sleep(rng.uniform(0, 0.1))  # at any moment of its work
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            victim.stdout.close()
            # SIGKILL may have come while the server was about to open a file, which the next
            # client that has a region removes.
            with Client(sharing_server.grpc_url, shared_memory=True) as client:
                client.empty(1, np.int8)
            assert not segments(victim.pid)
            stale = witness.shared_memory.stale()
            assert {region.pid for region in stale} <= {one.pid for one in victims[:number]}
            for region in stale:
                assert 0 <= region.age < 300
                assert region.byte_size > 0
                if region.pid == victim.pid:
                    witness.shared_memory.unregister(region.name)
        assert not witness.shared_memory.stale()
        assert not witness.shared_memory.registered()


def test_a_client_that_ends_without_closing_is_no_trouble(sharing_server):
    program = f"""
        import numpy as np
        from triton_fast import Client
        client = Client({sharing_server.grpc_url!r}, shared_memory=True)
        answer = client.infer("identity_cpp", {{"INPUT0": np.ones({BIG}, np.float32)}})
        answer = client.infer("identity_cpp", {{"INPUT0": np.ones({BIG}, np.float32)}})
        print(len(client.shared_memory.registered()))
        """
    assert output_of(program) == "1\n"
    with Client(sharing_server.grpc_url, shared_memory=False) as client:
        assert not client.shared_memory.registered()
    assert not files()


def test_a_client_killed_while_it_registers(sharing_server):
    """The one moment in which a file is there: the next client removes it."""
    program = f"""
        import os, signal
        import triton_fast.shared_memory.registration
        from triton_fast import Client
        def killed(*ignored):
            os.kill(os.getpid(), signal.SIGKILL)
        triton_fast.shared_memory.registration.Registry.register = killed
        Client({sharing_server.grpc_url!r}, shared_memory=True).empty(1, "u1")
        """
    with python(program) as victim:
        assert victim.wait(60) == -signal.SIGKILL
    # Another process that has just made a client, as tests beside this one do, was faster.
    assert len(files()) in {0, 1}
    with (
        SharedMemoryRegion.create(4096) as kept,
        Client(sharing_server.grpc_url, shared_memory=True) as client,
    ):
        client.empty(1, np.int8)
        assert files() == {kept.key.removeprefix("/")}
    assert not files()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_a_pool_of_its_own(sharing_server):
    with Client(sharing_server.grpc_url, channel="native", shared_memory=True) as client:
        echo(client, array(0))
        kept = echo(client, array(1))
        child = os.fork()
        OURS.add(child)
        if child == 0:
            status = 1
            try:
                np.testing.assert_array_equal(kept, array(1))
                for seed in range(3):
                    np.testing.assert_array_equal(echo(client, array(seed)), array(seed))
                assert len(client.shared_memory.registered()) == 2
                client.close()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(client.shared_memory.registered()) == 1
        np.testing.assert_array_equal(kept, array(1))
        np.testing.assert_array_equal(echo(client, array(2)), array(2))
    assert not files()


def test_processes_of_multiprocessing_leave_nothing(sharing_server):
    """They end without what atexit runs."""
    program = f"""
        import multiprocessing
        import os
        import numpy as np
        from triton_fast import Client
        def work(number):
            data = np.full({BIG}, number, np.float32)
            assert (client.infer("identity_cpp", {{"INPUT0": data}})["OUTPUT0"] == number).all()
            return len(client.shared_memory.registered()), os.getpid()
        client = Client({sharing_server.grpc_url!r}, channel="native", shared_memory=True)
        work(0)
        with multiprocessing.get_context("fork").Pool(2) as workers:
            told = workers.map(work, range(6), chunksize=1)
            workers.close()
            workers.join()
        assert min(registered for registered, _ in told) > 1
        print(len(client.shared_memory.registered()), *{{pid for _, pid in told}})
        """
    left, *pids = output_of(program).split()
    assert left == "1", (left, pids)
    OURS.update(map(int, pids))
    assert not files()


def test_a_closed_client(sharing_server):
    client = Client(sharing_server.grpc_url, shared_memory=True)
    mine = client.empty(10, np.float32)
    client.close()
    client.close()
    mine[:] = 1
    with pytest.raises(ClosedError):
        client.empty(10, np.float32)
    with pytest.raises(ClosedError):
        echo(client, mine)


def test_options_that_make_no_sense(sharing_server):
    for value in ("yes", 2, None):
        with pytest.raises(InvalidOption, match="shared_memory must be 'auto', True or False"):
            Client(sharing_server.grpc_url, shared_memory=value)
    for value in (-1, 1.5, True, None):
        with pytest.raises(InvalidOption, match="shared_memory_limit must be a number of bytes"):
            Client(sharing_server.grpc_url, shared_memory_limit=value)
    with pytest.raises(InvalidOption, match="is not one address"):
        Client("dns:///localhost:8001", shared_memory=True)


# By hand -----------------------------------------------------------------------------------------


def test_a_region_by_hand(sharing_server):
    with (
        Client(sharing_server.grpc_url, shared_memory=False, timeout=60) as client,
        SharedMemoryRegion.create(2 * 4 * BIG) as region,
    ):
        region.register(client)
        assert client.shared_memory.registered()[region.name].byte_size == 2 * 4 * BIG
        with pytest.raises(AlreadyExists):
            region.register(client)
        region.array((BIG,), np.float32)[:] = array(1)
        output = region.output("OUTPUT0", 4 * BIG, 4 * BIG)
        result = client.infer(
            "identity_cpp", {"INPUT0": region.tensor((BIG,), np.float32)}, outputs=[output]
        )
        assert not result
        assert result.shared_memory["OUTPUT0"].shape == (BIG,)
        np.testing.assert_array_equal(region.array((BIG,), np.float32, 4 * BIG), array(1))
        with SharedMemoryRegion.attach(region.key, 4 * BIG, offset=4 * BIG) as other:
            np.testing.assert_array_equal(other.array((BIG,), np.float32), array(1))
        region.unregister(client)
        assert not client.shared_memory.registered()
    assert not files()


def test_a_region_that_is_still_in_use():
    region = SharedMemoryRegion.create(4096)
    view = region.array((16, 64), np.float32)[3:, ::2]
    with pytest.raises(SharedMemoryError, match="1 array is alive"):
        region.close()
    view[:] = 1
    del view
    region.close()
    region.close()
    with pytest.raises(ClosedError):
        region.array((1,), np.uint8)
    assert not files()


def test_what_does_not_lie_in_a_region():
    with SharedMemoryRegion.create(4096) as region:
        for call in (
            lambda: region.array((1025,), np.float32),
            lambda: region.array((1,), np.float32, 4093),
            lambda: region.tensor((1025,), np.float32),
            lambda: region.output("OUTPUT0", 4097),
        ):
            with pytest.raises(InvalidTensor, match="do not lie in the region"):
                call()
        with pytest.raises(InvalidTensor, match="offset must be a number of bytes, 0 or more"):
            region.array((1,), np.float32, -4)
        with pytest.raises(InvalidTensor, match="no shared arrays of object"):
            region.tensor((1,), object)
        with pytest.raises(InvalidTensor, match="no datatype"):
            region.tensor((1,), complex)
    with pytest.raises(InvalidOption):
        SharedMemoryRegion.create(0)
    with pytest.raises(SharedMemoryError):
        SharedMemoryRegion.attach("/triton_fast-there-is-none", 4096)


def test_a_region_of_a_key_that_is_gone(sharing_client):
    with pytest.raises(Internal, match="Unable to open"):
        sharing_client.shared_memory.register("gone", "/triton_fast-there-is-none", 4096)
    sharing_client.shared_memory.unregister("gone")
    with pytest.raises(InvalidOption):
        sharing_client.shared_memory.unregister("")


def test_a_users_own_region_in_a_call_of_ours(sharing_client):
    with SharedMemoryRegion.create(4 * BIG) as region:
        region.register(sharing_client)
        outputs = [region.output("OUTPUT0", 4 * BIG)]
        for seed in range(3):
            result = sharing_client.infer("identity_cpp", {"INPUT0": array(seed)}, outputs=outputs)
            assert "OUTPUT0" in result.shared_memory
            np.testing.assert_array_equal(region.array((BIG,), np.float32), array(seed))
        region.unregister(sharing_client)


def test_classes_stay_on_the_wire(sharing_client):
    assert isinstance(FailedPrecondition("x"), TritonFastError)
    output = RequestedOutput("OUTPUT0", {"classification": 2})
    data = np.arange(BIG, dtype=np.float32).reshape(1, BIG)
    for _ in range(3):
        result = sharing_client.infer("identity_batched", {"INPUT0": data}, outputs=[output])
        assert result["OUTPUT0"].shape == (1, 2)
