"""Leases from Python: a slot is somebody's as long as an array is on it, and no longer."""

from __future__ import annotations

import errno
import gc
import random
import signal
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from shm_programs import run_program
from support.bystander import Bystander
from support.process import resident

from triton_fast import InvalidTensor, SharedMemoryError
from triton_fast._core import _shm

MIB = 1 << 20
NOTHING = {"leased": 0, "leased_bytes": 0, "quarantined": 0, "quarantined_bytes": 0}


def new_arenas(*sizes):
    arenas = _shm.Arenas()
    for size in sizes or (MIB,):
        arenas.add(_shm.Segment.create(size))
    return arenas


def address_of(array):
    return array.__array_interface__["data"][0]


def test_a_lease_is_a_buffer_of_the_size_asked_for():
    arenas = new_arenas()
    arenas.take(64)
    lease = arenas.take(5000)
    assert (lease.arena, lease.offset) == (0, 0)
    assert (lease.byte_size, len(lease), lease.capacity) == (5000, 5000, 8192)
    assert lease.address == lease.segment.address
    view = memoryview(lease)
    assert (view.format, view.shape, view.readonly) == ("B", (5000,), False)
    view[:] = bytes(range(250)) * 20
    assert bytes(memoryview(lease.segment)[:5000]) == bytes(range(250)) * 20
    later = arenas.take(1)
    assert (later.offset, later.capacity, later.address) == (8192, 64, lease.address + 8192)
    np.frombuffer(later, np.uint8)[0] = 7
    assert memoryview(lease.segment)[8192] == 7


@pytest.mark.parametrize("shape", [(), (3, 4), (0,), (0, 5)])
def test_arrays_of_any_shape_lie_in_a_slot(shape):
    arenas = new_arenas()
    array = np.ndarray(shape, np.float32, arenas.take(int(np.prod(shape)) * 4))
    array[...] = 3
    assert (array == 3).all()
    assert array.flags.writeable


@pytest.mark.parametrize(
    "look",
    [
        lambda lease: np.ndarray((1024,), np.float32, lease),
        lambda lease: np.frombuffer(lease, np.float32),
        lambda lease: memoryview(lease)[5:9],
        lambda lease: np.frombuffer(lease, np.float32).reshape(2, 512)[1].view(np.uint8)[3:],
    ],
    ids=["ndarray", "frombuffer", "memoryview", "views of views"],
)
def test_the_slot_goes_back_with_the_last_view(look):
    arenas = new_arenas()
    view = look(arenas.take(4096))
    seen = arenas.generation
    gc.collect()
    assert arenas.figures()["leased"] == 1
    assert arenas.generation == seen
    assert arenas.take(MIB) is None
    del view
    assert arenas.figures() == {"byte_size": MIB, **NOTHING}
    assert arenas.generation != seen
    assert arenas.take(MIB).offset == 0


def test_no_two_leases_overlap_whatever_the_order():
    arenas = new_arenas(MIB, MIB // 2)
    order = random.Random(4)
    arrays = []
    for step in range(3000):
        lease = (
            arenas.take(order.choice([10, 3000, 5000, 100_000])) if order.random() < 0.6 else None
        )
        if lease is not None:
            arrays.append((step % 251, np.frombuffer(lease, np.uint8)))
            arrays[-1][1][:] = step % 251
        elif arrays:
            number, array = arrays.pop(order.randrange(len(arrays)))
            assert (array == number).all()
    del array, lease
    arrays.clear()
    assert arenas.figures()["leased"] == 0
    assert arenas.take(MIB) is not None


def test_a_lease_keeps_its_memory_whatever_becomes_of_the_rest():
    arenas = new_arenas()
    array = np.frombuffer(arenas.take(4096), np.uint8)
    del arenas
    gc.collect()
    array[:] = 5
    assert array.sum() == 5 * 4096


def test_find_knows_what_lies_in_one_slot():
    arenas = new_arenas(MIB, MIB)
    one = arenas.take(5000)
    two = arenas.take(5000)
    array = np.frombuffer(two, np.uint8)
    begin = address_of(array)
    assert arenas.find(begin, 5000) == (two.arena, two.offset) == (0, 8192)
    assert arenas.find(begin + 100, 4900) == (0, 8292)
    assert arenas.find(address_of(array[7:]), 0) == (0, 8199)
    assert arenas.find(begin - 1, 2) is None  # in two slots
    assert arenas.find(begin, 8193) is None
    assert arenas.find(begin, 2**64 - 1) is None
    assert arenas.find(address_of(np.zeros(10)), 80) is None
    assert arenas.find(0, 1) is None
    arenas.retire(0)
    assert arenas.find(begin, 5000) == (0, 8192)
    address = one.address
    del one
    assert arenas.find(address, 1) is None
    other = arenas.take(1)
    assert other.arena == 1
    assert arenas.find(other.address, 1) == (1, 0)


def test_a_quarantined_slot_never_comes_back():
    arenas = new_arenas(8192)
    lease = arenas.take(4096)
    array = np.frombuffer(lease, np.uint8)
    lease.quarantine()
    lease.quarantine()
    arenas.quarantine(0, 17)
    assert arenas.figures(0) == {
        "byte_size": 8192,
        **NOTHING,
        "quarantined": 1,
        "quarantined_bytes": 4096,
    }
    assert arenas.idle(0)
    array[:] = 3
    assert arenas.find(lease.address, 4096) == (0, 0)
    address = lease.address
    del lease, array
    assert arenas.find(address, 1) is None
    assert arenas.take(4097) is None
    assert arenas.take(4096).offset == 4096
    with pytest.raises(KeyError):
        arenas.quarantine(0, 5000)
    with pytest.raises(KeyError):
        arenas.quarantine(1, 0)


def test_an_arena_goes_when_it_is_idle():
    arenas = new_arenas(8192)
    segment = arenas.take(1).segment
    lease = arenas.take(100)
    assert not arenas.idle(0)
    with pytest.raises(SharedMemoryError, match="arena 0 are leased") as caught:
        arenas.remove(0)
    assert caught.value.errno == errno.EBUSY
    arenas.retire(0)
    arenas.retire(0)
    assert arenas.take(1) is None
    del lease
    assert arenas.idle(0)
    arenas.remove(0)
    assert arenas.figures() == {"byte_size": 0, **NOTHING}
    for call in (arenas.remove, arenas.retire, arenas.figures):
        with pytest.raises(KeyError):
            call(0)
    with pytest.raises(ValueError, match="added before"):
        arenas.add(segment)
    assert arenas.add(_shm.Segment.create(4096)) == 1


def test_a_quarantined_lease_outlives_its_arena():
    arenas = new_arenas(8192)
    array = np.frombuffer(arenas.take(100), np.uint8)
    arenas.quarantine(0, 0)
    arenas.remove(0)
    gc.collect()
    array[:] = 1
    assert arenas.find(address_of(array), 1) is None
    assert arenas.add(_shm.Segment.create(8192)) == 1
    del array
    assert arenas.figures()["byte_size"] == 8192
    assert arenas.take(8192) is not None


def test_a_segment_is_not_closed_under_a_lease():
    arenas = new_arenas()
    lease = arenas.take(1)
    segment = lease.segment
    assert segment.exports == 1
    with pytest.raises(SharedMemoryError, match="1 array is alive"):
        segment.close()
    del lease
    segment.close()


@pytest.mark.parametrize("count", [1, 100, 1_000_000])
def test_payloads_are_copied_in(count):
    arenas = new_arenas(32 * MIB)
    for array in (
        np.arange(count, dtype=np.float32),
        np.arange(count).astype(ml_dtypes.bfloat16),
        np.arange(count).astype("datetime64[s]"),
        np.arange(count, dtype=np.int64).tobytes(),
    ):
        wanted = array if isinstance(array, bytes) else array.tobytes()
        lease = arenas.take(len(wanted))
        lease.copy_from(array)
        assert bytes(lease) == wanted
        lease.copy_from(lease)
        assert bytes(lease) == wanted


def test_only_what_fits_is_copied_in():
    arenas = new_arenas()
    lease = arenas.take(100)
    for size in (99, 101, 0):
        with pytest.raises(InvalidTensor, match=f"{size} bytes do not fill a slot of 100"):
            lease.copy_from(bytes(size))
    with pytest.raises((BufferError, ValueError)):
        lease.copy_from(np.zeros((10, 20), np.uint8)[:, ::2])
    with pytest.raises(TypeError):
        lease.copy_from(5)
    assert bytes(lease) == bytes(100)


def test_a_large_copy_lets_others_run():
    arenas = new_arenas(32 * MIB)
    lease = arenas.take(32 * MIB)
    payload = np.ones(32 * MIB, np.uint8)
    with Bystander() as bystander:
        assert bystander.moves_in_time(lambda: lease.copy_from(payload))


def test_a_small_copy_does_not():
    """Which also shows that the test above can fail."""
    lease = new_arenas().take(64)
    with Bystander() as bystander:
        assert not any(bystander.moves_during(lambda: lease.copy_from(bytes(64))) for _ in "x" * 99)


def test_threads_share_arenas():
    arenas = new_arenas(MIB, MIB // 2)
    failed = []
    deadline = time.monotonic_ns() + 60 * 10**9

    def work(number):
        order = random.Random(number)
        try:
            for _ in range(400):
                while True:
                    seen = arenas.generation
                    lease = arenas.take(order.choice([100, 70_000, 300_000]))
                    if lease is not None:
                        break
                    assert arenas.wait(seen, deadline)
                array = np.frombuffer(lease, np.uint8)
                del lease
                array[:] = number
                assert arenas.find(address_of(array), array.size)
                assert (array == number).all()
                del array
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert arenas.figures()["leased"] == 0
    assert arenas.take(MIB) is not None


def test_who_waits_is_told():
    arenas = new_arenas(4096)
    taken = [arenas.take(4096)]
    seen = arenas.generation
    deadline = time.monotonic_ns() + 50_000_000
    assert not arenas.wait(seen, deadline)
    assert time.monotonic_ns() >= deadline
    assert not arenas.wait(seen, time.monotonic_ns() - 1)
    threading.Timer(0.1, taken.clear).start()
    assert arenas.wait(seen, None)
    assert arenas.take(4096) is not None
    assert arenas.wait(seen, 0)


def test_who_waits_hears_signals():
    arenas = new_arenas(4096)
    main = threading.main_thread().ident
    deadline = time.monotonic_ns() + 60 * 10**9

    def wait():
        # On a busy machine the signal may be there before it waits: it is for this function then.
        threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        arenas.wait(arenas.generation, deadline)

    before = signal.signal(signal.SIGUSR1, lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            wait()
        assert time.monotonic_ns() < deadline
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_child_has_nothing_of_the_parents_arenas():
    run_program("""
        from triton_fast import ClosedError
        arenas = _shm.Arenas()
        arenas.add(_shm.Segment.create(1 << 20))
        kept = np.frombuffer(arenas.take(5000), np.uint8)
        kept[:] = 9
        lease = arenas.take(100)
        stop = threading.Event()

        def hammer():
            # So that many a child finds the lock taken.
            while not stop.is_set():
                for _ in range(1000):
                    arenas.take(4096)

        def wait():
            while not stop.is_set():
                arenas.wait(arenas.generation, time.monotonic_ns() + 10**7)

        def child():
            global arenas, kept, lease
            assert arenas.inherited
            assert arenas.find(kept.__array_interface__["data"][0], 10) is None
            for call in (lambda: arenas.take(1), lambda: arenas.add(lease.segment),
                         lambda: arenas.retire(0), lambda: arenas.idle(0), lambda: arenas.remove(0),
                         lambda: arenas.wait(0, 0), lambda: arenas.generation, arenas.figures,
                         lambda: arenas.quarantine(0, 0), lease.quarantine):
                try:
                    call()
                except ClosedError as error:
                    assert "parent process" in str(error)
                else:
                    raise AssertionError("no error")
            assert (kept == 9).all()
            own = _shm.Arenas()
            own.add(_shm.Segment.create(4096))
            assert own.take(4096) is not None and not own.inherited
            del kept, lease, arenas, own
            gc.collect()

        sys.setswitchinterval(1e-4)  # the threads leave this one little otherwise
        threads = [threading.Thread(target=hammer), threading.Thread(target=wait)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                fork(child)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not arenas.inherited
        assert arenas.figures()["leased"] == 2
        del kept, lease
        assert arenas.figures()["leased"] == 0
    """)


def test_a_hundred_thousand_leases_leave_memory_flat():
    arenas = new_arenas()
    before = 0
    for step in range(100_000):
        array = np.frombuffer(arenas.take(1 + step % 70_000), np.uint8)
        if step % 3 == 0:
            kept = array
        if step == 10_000:
            before = resident()
    # 10 MB if each left a hundred bytes; other threads may take some.
    assert resident() - before < 4 << 20
    del array, kept
    assert arenas.figures()["leased"] == 0
