"""Segments from Python: who keeps the memory, who takes the name away, and what goes wrong."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from shm_programs import is_mapped, mapping_count, run_program
from support.process import segments

from triton_fast import ClosedError, SharedMemoryError, TritonFastError
from triton_fast._core import _shm


def number_of(call, *args):
    """Return the errno of the error that a call must raise."""
    with pytest.raises(SharedMemoryError) as caught:
        call(*args)
    return caught.value.errno


def test_a_segment_is_a_file_of_ours_alone():
    segment = _shm.Segment.create(5000)
    file = Path("/dev/shm" + segment.key).stat()
    assert file.st_mode & 0o7777 == 0o600
    assert (segment.byte_size, len(segment), file.st_size) == (5000, 5000, 5000)
    assert segment.address % 4096 == 0
    assert not segment.inherited
    array = np.frombuffer(segment, np.uint8)
    assert array.size == 5000
    assert not array.any()


def test_two_mappings_are_one_memory():
    segment = _shm.Segment.create(1 << 20)
    attached = _shm.Segment.attach(segment.key, 4096, 8192)
    assert attached.key == segment.key
    np.frombuffer(segment, np.uint32)[2048] = 77
    assert np.frombuffer(attached, np.uint32)[0] == 77
    attached.close()
    assert Path("/dev/shm" + segment.key).exists()
    assert number_of(attached.unlink) == errno.EPERM


def test_a_view_of_a_segment_is_bytes_that_may_be_written():
    segment = _shm.Segment.create(64)
    view = memoryview(segment)
    assert (view.format, view.shape, view.strides, view.readonly) == ("B", (64,), (1,), False)
    view[3] = 9
    assert bytes(segment)[:5] == b"\0\0\0\x09\0"


@pytest.mark.parametrize("gone", ["unlinked", "closed", "dropped"])
def test_the_name_goes(gone):
    segment = _shm.Segment.create(100)
    name = segment.key[1:]
    assert name in segments()
    if gone == "unlinked":
        segment.unlink()
        segment.unlink()
    elif gone == "closed":
        segment.close()
        segment.close()
    else:
        del segment
    assert name not in segments()


def test_an_unlinked_segment_is_still_there():
    segment = _shm.Segment.create(1 << 20)
    attached = _shm.Segment.attach(segment.key, 100)
    segment.unlink()
    np.frombuffer(segment, np.uint8)[:3] = 5
    assert bytes(attached)[:4] == b"\5\5\5\0"
    assert number_of(_shm.Segment.attach, segment.key, 100) == errno.ENOENT


def test_close_refuses_while_arrays_are_alive():
    segment = _shm.Segment.create(1 << 20)
    one = np.frombuffer(segment, np.uint8)
    two = one[5:]
    with pytest.raises(SharedMemoryError, match="1 array is alive on it") as caught:
        segment.close()
    assert caught.value.errno == errno.EBUSY
    three = np.frombuffer(segment, np.float32)
    assert segment.exports == 2
    with pytest.raises(SharedMemoryError, match="2 arrays are alive on it"):
        segment.close()
    assert segment.key[1:] in segments()
    del one, three
    assert segment.exports == 1
    two[0] = 1
    del two
    segment.close()
    with pytest.raises(ClosedError):
        memoryview(segment)


def test_no_array_outlives_its_memory():
    """numpy takes this one's address and keeps no buffer, only the object."""
    segment = _shm.Segment.create(1 << 20)
    array = np.ndarray((1 << 20,), np.uint8, buffer=segment)
    address = segment.address
    segment.close()
    del segment
    gc.collect()
    array[:] = 7
    assert is_mapped(address)
    del array
    assert not is_mapped(address)


def test_what_cannot_be_had_is_an_error_with_its_errno():
    free = os.statvfs("/dev/shm")
    code = """
        # Should there be no check after all, this is as far as it gets.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28, 1 << 28))
        before = descriptor_count()
        for size, number in ((int(sys.argv[1]), errno.ENOSPC), (1 << 60, errno.ENOSPC),
                             (1 << 29, errno.EFBIG), (0, errno.EINVAL)):
            try:
                _shm.Segment.create(size)
            except OSError as error:
                assert error.errno == number, error
                assert "bytes of shared memory" in str(error)
            else:
                raise AssertionError(size)
            assert not segments()
        assert descriptor_count() == before
        assert len(_shm.Segment.create(1 << 20)) == 1 << 20
    """
    # More than is free, by enough that what others give back meanwhile does not matter.
    size = str(free.f_bavail * free.f_frsize + (1 << 36))
    run_program(code, size)


def test_the_error_is_one_of_ours_and_an_oserror():
    with pytest.raises(TritonFastError) as caught:
        _shm.Segment.create(0)
    assert isinstance(caught.value, OSError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is SharedMemoryError
    assert (again.errno, str(again)) == (caught.value.errno, str(caught.value))


def test_what_cannot_be_attached_to_is_an_error_with_its_errno():
    segment = _shm.Segment.create(1 << 20)
    attach = _shm.Segment.attach
    assert number_of(attach, "/triton_fast-nobody", 1) == errno.ENOENT
    assert number_of(attach, segment.key + "\0", 1) == errno.EINVAL
    assert number_of(attach, segment.key, (1 << 20) + 1) == errno.EINVAL
    assert number_of(attach, segment.key, 1, 1 << 20) == errno.EINVAL
    assert number_of(attach, segment.key, 1, 5) == errno.EINVAL
    assert number_of(attach, segment.key, 0) == errno.EINVAL
    with pytest.raises(OverflowError):
        attach(segment.key, -1)
    with pytest.raises(OverflowError):
        _shm.Segment.create(-1)
    with pytest.raises(TypeError):
        attach(None, 1)


def test_objects_are_not_made_by_hand():
    for kind in (_shm.Segment, _shm.Lease):
        with pytest.raises(TypeError, match="made by"):
            kind()


def test_a_child_leaves_the_parents_file_alone():
    run_program("""
        segment = _shm.Segment.create(1 << 20)
        array = np.frombuffer(segment, np.uint8)

        def child():
            global segment, array
            assert segment.inherited
            array[0] = 55
            segment.unlink()
            del array
            segment.close()
            del segment
            gc.collect()
            own = _shm.Segment.create(100)
            assert not own.inherited
            assert segments() == {own.key[1:]}
            own.close()

        fork(child)
        assert array[0] == 55
        assert segments() == {segment.key[1:]}
    """)


def test_a_process_that_ends_leaves_no_file():
    key = run_program("segment = _shm.Segment.create(100); print(segment.key)").strip()
    assert key.startswith("/triton_fast-")
    assert not Path("/dev/shm" + key).exists()


def test_a_process_killed_while_it_makes_segments_leaves_no_file():
    """Killed within create(): there is no name yet.

    Each segment takes a while, and is unlinked at once, so that few of the kills meet it with one,
    wherever a busy machine interrupts it. If it had its name from the beginning, most would.
    """
    code = """
        import os
        from triton_fast._core import _shm
        os.write(1, b"go")
        while True:
            _shm.Segment.create(64 << 20).unlink()
    """
    left = 0
    kills = 12
    for delay in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE
        )
        child.stdout.read(2)
        try:
            child.wait(0.003 + delay * 0.0031)
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait(60)
        child.stdout.close()
        for name in segments(child.pid):
            Path("/dev/shm", name).unlink()
            left += 1
    assert left < kills / 2


def test_a_thousand_segments_leave_nothing():
    before = mapping_count()
    for _ in range(1000):
        segment = _shm.Segment.create(4096)
        _shm.Segment.attach(segment.key, 4096)
        segment.unlink()
    assert mapping_count() <= before + 1
