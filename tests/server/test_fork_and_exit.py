"""A client in a process that forks, and in one that ends, while its calls run on a real Triton."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from support.interpreter import run_python

pytestmark = [pytest.mark.server, pytest.mark.native]

BEGIN = """
    import multiprocessing, os, signal, sys, threading, time, warnings
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    from triton_fast import Client, ClosedError

    # Python 3.12 and later warn of what is tested here.
    warnings.filterwarnings("ignore", "(?s).*fork.*", DeprecationWarning)
    client = Client(sys.argv[1], channel="native", timeout=60)
    model = client.model("identity_fp32")

    def inputs(number, size=1000):
        return {"INPUT0": np.full(size, number, np.float32)}

    def slow(seconds):
        return {**inputs(1, 4), "DELAY": np.array([seconds], np.float32)}

    def call(number):
        for size in (16, 150_528):
            assert (client.infer("identity_fp32", inputs(number, size))["OUTPUT0"] == number).all()
            assert (model(inputs(number, size))["OUTPUT0"] == number).all()
        future = client.submit("identity_fp32", inputs(number))
        assert (future.result(60)["OUTPUT0"] == number).all()
        return number

    call(0)
"""


def run(script, url, timeout=100):
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(BEGIN + script), url],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        timeout=timeout,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_eight_children_call_at_once_while_the_parents_threads_are_in_calls(triton_server):
    script = """
    threads = ThreadPoolExecutor(12)
    # These last until the client is closed, and those end when they may: across the forks, most
    # likely.
    long = [threads.submit(client.infer, "slow", slow(90), timeout=100) for _ in range(4)]
    long.append(client.submit("slow", slow(90), timeout=100))
    begun = [client.submit("slow", slow(1)) for _ in range(2)]
    stopping = threading.Event()

    def hammer():
        calls = 0
        while not stopping.is_set():
            calls += 1
            call(calls)
        return calls

    hammering = [threads.submit(hammer) for _ in range(2)]
    time.sleep(0.3)
    sys.excepthook = lambda *error: (sys.__excepthook__(*error), os._exit(1))  # threads go on
    children = []
    for number in range(8):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            call(number)
            long[-1].cancel()  # its copy; the parent's goes on
            os._exit(0)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    assert statuses == [0] * 8, statuses
    assert not any(future.done() for future in long), "the children waited for the parent"
    stopping.set()
    assert all(future.result() > 1 for future in hammering)
    for future in begun:
        assert (future.result(60)["OUTPUT0"] == 1).all()
    assert not any(future.done() for future in long), "the children broke the parent's calls"
    call(9)
    client.close()
    for future in long:
        assert isinstance(future.exception(60), ClosedError)
    """
    assert run(script, triton_server.grpc_url) == (0, "", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(triton_server, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(BEGIN)
        + textwrap.dedent(f"""
    if __name__ == "__main__":
        begun = client.submit("slow", slow(1))
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            assert pool.map(call, range(6)) == list(range(6))
        assert (begun.result(60)["OUTPUT0"] == 1).all()
        call(99)
    """)
    )
    done = subprocess.run(
        [sys.executable, str(program), triton_server.grpc_url],
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        timeout=100,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.server_may_die
@pytest.mark.parametrize("end", ["sys.exit(7)", ""])
def test_the_interpreter_ends_with_calls_running(shared_server, end):
    """Threads in calls and between calls, futures that nobody waits for, a client not closed."""
    script = f"""
    begun = [client.submit("slow", slow(60)) for _ in range(40)]

    def forever(work):
        while True:
            try:
                work()
            except Exception:
                time.sleep(0.001)

    for work in (lambda: call(1), lambda: call(2), lambda: client.infer("slow", slow(60))):
        threading.Thread(target=forever, args=(work,), daemon=True).start()
    time.sleep(0.3)
    {end}
    """
    for _ in range(2):
        assert run(script, shared_server().grpc_url) == (7 if "7" in end else 0, "", "")


@pytest.mark.parametrize("face", ["blocking", "async"])
def test_a_programs_own_exit_hook_may_make_calls(triton_server, face):
    """It was there before, and so runs after ours, when shared memory was given back."""
    script = """
    import atexit, sys
    atexit.register(lambda: print(call()))

    import asyncio
    import numpy as np
    from triton_fast import AsyncClient, Client

    large = {"INPUT0": np.ones(1 << 18, np.float32)}
    if sys.argv[2] == "blocking":
        client = Client(sys.argv[1], timeout=60)
        def call():
            return client.infer("identity_cpp", large)["OUTPUT0"].sum().item()
    else:
        client = AsyncClient(sys.argv[1], timeout=60)
        loop = asyncio.new_event_loop()
        def call():
            work = client.infer("identity_cpp", large)
            return loop.run_until_complete(work)["OUTPUT0"].sum().item()
    print(call())
    """
    assert run_python(script, triton_server.grpc_url, face) == "262144.0\n" * 2


FIRST_CALLS = {
    "triton_fast.client.split": "client.infer('add_sub', pairs, split=True)",
    "triton_fast.streaming.stream": "list(client.stream('identity_fp32', row))",
    "triton_fast.client.submission": "client.submit('identity_fp32', row).result()",
    "concurrent.futures._base": "client.submit('identity_fp32', row).result()",
    "google.protobuf.descriptor_pool": "client.server_metadata()",
    "google.protobuf": "client.server_metadata()",
    "grpc": "client.infer('identity_fp32', row)",
    "grpc._channel": "client.infer('identity_fp32', row)",
}


@pytest.mark.parametrize("module", FIRST_CALLS)
def test_a_fork_during_another_threads_first_call(triton_server, module):
    """The child would wait for ever for an import that is under way in a thread it has not got.

    While a module is looked for, and not executed yet, Python's own fork waits.
    """
    script = """
    import importlib.abc, importlib.machinery, os, signal, sys, threading
    import numpy as np
    from triton_fast import Client, FailedPrecondition

    url, module, call = sys.argv[1:]
    assert module not in sys.modules
    importing, go_on = threading.Event(), threading.Event()

    class Slow(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name != module or importing.is_set():
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module

            def slowly(made):
                importing.set()
                assert go_on.wait(60)
                execute(made)

            spec.loader.exec_module = slowly
            return spec

    sys.meta_path.insert(0, Slow())
    client = Client(url, channel="grpc" if module.startswith("grpc") else "native", timeout=60)
    row = {"INPUT0": np.ones(4, np.float32)}
    pairs = {name: np.ones((9, 16), np.float32) for name in ("INPUT0", "INPUT1")}

    thread = threading.Thread(target=eval, args=(call, globals()))
    thread.start()
    assert importing.wait(30)
    pid = os.fork()
    if not pid:
        signal.alarm(30)
        try:
            eval(call)
        except FailedPrecondition:  # grpcio, with which a call had begun
            assert module.startswith("grpc")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    go_on.set()
    thread.join()
    eval(call)
    print(status)
    """
    arguments = (triton_server.grpc_url, module, FIRST_CALLS[module])
    assert run_python(script, *arguments, quiet=True) == "0\n"
