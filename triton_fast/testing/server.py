"""`TritonServer`: a real Triton for a test, a benchmark or a demonstration.

Owns the server's command line and environment, its ports, its log and the wait for readiness. The
processes themselves are `triton_fast.testing.supervisor`'s. Standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import itertools
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from triton_fast.errors import InvalidOption
from triton_fast.testing.backends import BACKENDS, build_backend
from triton_fast.testing.errors import PythonBackendUnavailable, TritonServerFailed
from triton_fast.testing.installation import Installation, find_tritonserver
from triton_fast.testing.models import write_test_models
from triton_fast.testing.python_backend import PythonBackend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

__all__ = ["TritonServer"]

_HOST = "127.0.0.1"
_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_PORT_ATTEMPTS = 5
# How long the supervisor may take over its own work, beyond what the server takes.
_SUPERVISOR_SECONDS = 20.0
# The file name of a Unix socket has at most 107 bytes (sockaddr_un), ":65535" among them.
_MAX_SOCKET_PATH = 107

_BACKEND = re.compile(r"""\bbackend\s*:\s*["']([^"']+)["']""")
_COMMENT = re.compile(r"#.*")
_PORT_TAKEN = re.compile(r"failed to start \w+ service: .*:(\d+)' already in use")
# Records of severity I (month and day, time), and lines of tables.
_UNIMPORTANT = re.compile(r"I\d{4} \d\d:\d\d:\d\d|\+-|\| ")
# What a server without a GPU says, and does not mind.
_NOISE = re.compile(
    r"\bNVML\b|\bDCGM\b|CudaDriverHelper|CUDA driver version is insufficient|"
    r"pinned memory pool will not be available|CUDA memory pool disabled"
)
_FIRST_LINES = 20
_LAST_LINES = 40


class TritonServer:
    """A Triton server of one's own, on free ports, that leaves nothing behind.

    Parameters
    ----------
    model_repository : path, optional
        The models to serve. When left out, the built-in test models
        (`triton_fast.testing.write_test_models`).
    models : sequence of str, optional
        Which of the built-in test models; `triton_fast.testing.TEST_MODELS` when left out. Not
        together with `model_repository`.
    backend_directory : path or sequence of paths, optional
        Folders with further backends, each as ``NAME/libtriton_NAME.so``; they come on top of the
        server's own and win over those of the same name.
    grpc_port, http_port, metrics_port : int, optional
        Ports on 127.0.0.1; free ones when left out. They stay the same for the object's lifetime.
    unix_socket : bool, default False
        Listen for gRPC on a Unix socket instead of a port.
    extra_args : sequence of str
        More arguments for ``tritonserver``, ``--name=value``. Do not turn HTTP off: readiness is
        asked there.
    env : mapping of str to str, optional
        Environment variables of the server, on top of this process's. The folders of ``PYTHONPATH``
        can be imported from in Python models.
    log_path : path, optional
        A file that the log is appended to. When left out, the log is in an unnamed temporary file.
    startup_timeout : float, seconds, default 60
        How long the server may take until it is ready.
    stop_timeout : float, seconds, default 15
        How long `stop` waits for the server before it is killed.
    allow_failing_models : bool, default False
        Start although a model does not load; the server is then ready without it.
    executable : path, optional
        The program; see `triton_fast.testing.find_tritonserver` for where it is searched.

    Attributes
    ----------
    grpc_url, http_url, metrics_url : str
        ``127.0.0.1:PORT``, known once the server was started for the first time. With
        `unix_socket`, `grpc_url` is ``unix:PATH``.

    Notes
    -----
    A context manager: entering starts the server and leaving stops it. Not thread-safe.

    The server, the processes of its Python models, their shared memory and its temporary folder go
    when the server is stopped or killed, when it dies, and when this process ends, however that
    happens. In a forked child the object does nothing.

    Examples
    --------
    >>> from triton_fast.testing import TritonServer
    >>> with TritonServer(models=["identity_fp32"]) as server:  # doctest: +SKIP
    ...     print(server.grpc_url)
    127.0.0.1:23817
    """

    def __init__(
        self,
        model_repository: str | os.PathLike[str] | None = None,
        *,
        models: Sequence[str] | None = None,
        backend_directory: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        unix_socket: bool = False,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        log_path: str | os.PathLike[str] | None = None,
        startup_timeout: float = 60.0,
        stop_timeout: float = 15.0,
        allow_failing_models: bool = False,
        executable: str | os.PathLike[str] | None = None,
    ) -> None:
        if model_repository is not None and models is not None:
            raise InvalidOption("models= chooses among the built-in models: not for a repository")
        if isinstance(models, str) or isinstance(extra_args, str):
            raise InvalidOption("models= and extra_args= take a list of strings, not a string")
        self._repository = None if model_repository is None else Path(model_repository).absolute()
        self._models = models
        self._backend_folders = _paths(backend_directory)
        self._ports = {"grpc": grpc_port, "http": http_port, "metrics": metrics_port}
        self._unix_socket = unix_socket
        self._extra_args = list(extra_args)
        self._env = dict(env or {})
        self._log_path = None if log_path is None else Path(log_path).absolute()
        self._startup_timeout = startup_timeout
        self._stop_timeout = stop_timeout
        self._allow_failing_models = allow_failing_models
        self._executable = executable

        token = secrets.token_hex(5)
        self._folder = Path(tempfile.gettempdir(), f"triton_fast_{token}").absolute()
        # Begins like Triton's own default: the server refuses such names to its clients.
        self._shm_prefix = f"triton_python_backend_shm_region_{token}_"
        self._owner = os.getpid()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._replies = b""
        self._pid: int | None = None
        self._log_file: IO[bytes] | None = None
        self._log_start = 0
        self._log_text = ""
        self._note = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"pid {self._pid}, grpc {self.grpc_url}" if self.is_alive else "not running"
        return f"<TritonServer: {state}>"

    @property
    def grpc_url(self) -> str:
        """Where gRPC is served: ``127.0.0.1:PORT``, or ``unix:PATH`` with ``unix_socket=True``."""
        if self._unix_socket:
            return f"unix:{self._socket_base}:{self._port('grpc')}"
        return f"{_HOST}:{self._port('grpc')}"

    @property
    def http_url(self) -> str:
        """Where HTTP is served: ``127.0.0.1:PORT``."""
        return f"{_HOST}:{self._port('http')}"

    @property
    def metrics_url(self) -> str:
        """Where ``/metrics`` is served: ``127.0.0.1:PORT``."""
        return f"{_HOST}:{self._port('metrics')}"

    @property
    def pid(self) -> int:
        """Process id of ``tritonserver`` itself, of the latest start."""
        if self._pid is None:
            raise TritonServerFailed("the server was never started")
        return self._pid

    @property
    def is_alive(self) -> bool:
        """Whether the server runs; False within milliseconds after it died."""
        if self._supervisor is None or self._supervisor.stdout is None:
            return False
        # The supervisor says nothing between the start and the end of the server.
        return not self._replies and not _readable(self._supervisor.stdout.fileno(), 0)

    def log(self) -> str:
        """Return what the server has written since it was last started, also when it has ended."""
        if self._log_file is None:
            return self._log_text
        pieces = []
        position = self._log_start
        while piece := os.pread(self._log_file.fileno(), 1 << 20, position):
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces).decode(errors="replace")

    def start(self) -> Self:
        """Start the server and wait until it is ready; does nothing if it runs.

        Returns
        -------
        TritonServer
            This object.

        Raises
        ------
        TritonServerNotFound
            If there is no ``tritonserver`` on this machine.
        PythonBackendUnavailable
            If a model needs the Python backend, which cannot run here.
        BackendBuildFailed
            If a model needs one of our C++ backends, which cannot be compiled.
        TritonServerFailed
            If the server ended, or a model did not load, or it took too long.
        """
        if self.is_alive:
            return self
        self._finish()
        installation = find_tritonserver(self._executable)
        given = dict(self._ports)
        for attempt in itertools.count(1):
            self._choose_ports()
            try:
                self._start_once(installation)
            except TritonServerFailed as error:
                # Somebody else may take a free port between our look and the server's bind.
                free = {self._ports[kind] for kind, port in given.items() if port is None}
                taken = _PORT_TAKEN.search(error.log)
                if attempt == _PORT_ATTEMPTS or taken is None or int(taken[1]) not in free:
                    raise
                self._ports = dict(given)
            else:
                break
        return self

    def stop(self) -> None:
        """Stop the server: SIGTERM, and SIGKILL if it takes too long. Also after it died."""
        self._end(f"stop {self._stop_timeout}\n", self._stop_timeout)

    def kill(self) -> None:
        """Kill the server and the processes of its Python models with SIGKILL."""
        self._end("kill\n", 0.0)

    def restart(self) -> None:
        """Stop the server and start it again on the same ports."""
        self.stop()
        self.start()

    def _port(self, kind: str) -> int:
        port = self._ports[kind]
        if port is None:
            raise TritonServerFailed("the server has no ports before it is first started")
        return port

    @property
    def _socket_base(self) -> Path:
        return self._folder / "grpc"

    def _choose_ports(self) -> None:
        taken = {port for port in self._ports.values() if port is not None}
        for kind, port in self._ports.items():
            if port is None:
                self._ports[kind] = _free_port(taken)
                taken.add(self._port(kind))

    def _start_once(self, installation: Installation) -> None:
        self._note = ""
        self._open_log()
        try:
            self._launch()
            # What fills the folder may fail or be interrupted: the supervisor must not stay.
            argv, env = self._prepare(installation)
            self._tell(json.dumps({"argv": argv, "env": env}) + "\n")
            self._pid = self._reported_pid(installation.executable)
            self._wait_until_ready()
        except BaseException:
            self.kill()
            self._close_log()
            raise

    def _launch(self) -> None:
        """Start the supervisor, which makes the folder."""
        assert self._log_file is not None
        self._replies = b""
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            start_new_session=True,
            bufsize=0,
        )
        # The end of this process ends the server in any case; this makes it wait for that.
        atexit.register(self._at_exit)
        self._tell(json.dumps({"folder": str(self._folder), "shm_prefix": self._shm_prefix}) + "\n")
        reply = self._reply(_SUPERVISOR_SECONDS)
        if reply != "ready":
            raise self._failure(f"the temporary folder could not be made: {reply}")

    def _prepare(self, installation: Installation) -> tuple[list[str], dict[str, str]]:
        """Fill the folder; return the server's command line and environment."""
        repository = self._repository
        arguments = []
        if repository is None:
            repository = write_test_models(self._folder / "models", self._models)
            # Their configurations are complete; to complete one, Triton would start a stub twice.
            arguments.append("--disable-auto-complete-config")
        elif not repository.is_dir():
            raise InvalidOption(f"the model repository {repository} is not a folder")
        if self._allow_failing_models:
            arguments += ["--exit-on-error=false", "--strict-readiness=false"]
        needed = _backends_of(repository)
        backends = self._folder / "backends"
        self._link_backends(installation, backends)
        env = self._add_python_backend(installation, backends, needed)
        if installation.libraries is not None:
            env["LD_LIBRARY_PATH"] = os.pathsep.join(
                filter(None, [str(installation.libraries), env.get("LD_LIBRARY_PATH")])
            )
        self._build_backends(backends, needed)
        argv = [
            str(installation.executable),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--grpc-address={self._grpc_address()}",
            f"--grpc-port={self._port('grpc')}",
            f"--http-address={_HOST}",
            f"--http-port={self._port('http')}",
            f"--metrics-address={_HOST}",
            f"--metrics-port={self._port('metrics')}",
            *arguments,
            *self._extra_args,
        ]
        return argv, env

    def _link_backends(self, installation: Installation, backends: Path) -> None:
        """Gather the backends that there are in one folder; the caller's come first."""
        backends.mkdir()
        for folder in [*self._backend_folders, installation.backends]:
            for backend in [] if folder is None else sorted(folder.iterdir()):
                # The wheel's Python backend is not complete: its stub lies elsewhere.
                incomplete = folder is installation.backends and installation.stubs is not None
                taken = (backends / backend.name).exists()
                if not taken and not (incomplete and backend.name == "python"):
                    (backends / backend.name).symlink_to(backend)

    def _add_python_backend(
        self, installation: Installation, backends: Path, needed: set[str]
    ) -> dict[str, str]:
        """Put the wheel's Python backend together, if there is no other; return the environment."""
        env = {**os.environ, **self._env}
        if installation.stubs is None or (backends / "python").exists():
            return env
        try:
            python = PythonBackend.of(installation, env.get("PYTHONPATH", ""))
        except PythonBackendUnavailable as error:
            if "python" in needed:
                raise
            # Not needed as far as we can see. If it is, the server's complaint gets this note.
            self._note = f"The Python backend was left out: {error}"
            return env
        return python.put_together(self._folder, env)

    def _build_backends(self, backends: Path, needed: set[str]) -> None:
        """Build our own backends that the models need."""
        for name in BACKENDS:
            if name in needed and not (backends / name).exists():
                library = build_backend(name, self._folder)
                (backends / name).mkdir()
                (backends / name / f"libtriton_{name}.so").symlink_to(library)

    def _grpc_address(self) -> str:
        if not self._unix_socket:
            return _HOST
        length = len(os.fsencode(self.grpc_url.removeprefix("unix:")))
        if length > _MAX_SOCKET_PATH:
            raise InvalidOption(
                f"{self.grpc_url} has {length} bytes, too many for a Unix socket (at most "
                f"{_MAX_SOCKET_PATH}): set TMPDIR to a shorter folder"
            )
        return self.grpc_url.rpartition(":")[0]

    def _reported_pid(self, executable: Path) -> int:
        word, _, rest = self._reply(_SUPERVISOR_SECONDS).partition(" ")
        if word != "pid":
            raise self._failure(f"{executable} did not start: {rest}")
        return int(rest)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._startup_timeout
        ports = {self._port("http")}
        if not self._unix_socket:
            ports.add(self._port("grpc"))
        if not any(arg.startswith("--allow-metrics=") for arg in self._extra_args):
            ports.add(self._port("metrics"))
        assert self._supervisor is not None
        assert self._supervisor.stdout is not None
        while True:
            # Both questions: another server on the same port would answer the first one as well.
            if _answers_ready(self._port("http")) and _listens(self.pid, ports):
                return
            if _readable(self._supervisor.stdout.fileno(), 0.02):
                status = self._reply(_SUPERVISOR_SECONDS).partition(" ")[2]
                raise self._failure(f"tritonserver {_ending(status)} before it was ready")
            if _PORT_TAKEN.search(self.log()):
                # It will end by itself, but takes many seconds over that.
                raise self._failure("tritonserver found a port taken")
            if time.monotonic() >= deadline:
                raise self._failure(
                    f"tritonserver was not ready within {self._startup_timeout:g} s",
                    timed_out=True,
                )

    def _failure(self, message: str, *, timed_out: bool = False) -> TritonServerFailed:
        log = self.log()
        parts = [message, self._note, _excerpt(log)]
        text = "\n".join(part for part in parts if part)
        return TritonServerFailed(text, log, timed_out=timed_out)

    def _open_log(self) -> None:
        if self._log_path is None:
            self._log_file = tempfile.TemporaryFile()  # noqa: SIM115 - open while the server runs
        else:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log_file = self._log_path.open("a+b")
        self._log_start = os.fstat(self._log_file.fileno()).st_size
        self._log_text = ""

    def _close_log(self) -> None:
        if self._log_file is not None:
            self._log_text = self.log()
            self._log_file.close()
            self._log_file = None

    def _tell(self, message: str) -> None:
        """Send a line to the supervisor; one that has ended is noticed when it must reply."""
        assert self._supervisor is not None
        assert self._supervisor.stdin is not None
        rest = message.encode()
        with contextlib.suppress(BrokenPipeError):
            while rest:
                rest = rest[os.write(self._supervisor.stdin.fileno(), rest) :]

    def _reply(self, timeout: float) -> str:
        """Return the supervisor's next line; "" if it ended without one."""
        assert self._supervisor is not None
        assert self._supervisor.stdout is not None
        number = self._supervisor.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._replies:
            if not _readable(number, max(0.0, deadline - time.monotonic())):
                raise TritonServerFailed(
                    f"the server's supervisor (pid {self._supervisor.pid}) did not answer within "
                    f"{timeout:g} s",
                    self.log(),
                )
            piece = os.read(number, 4096)
            if not piece:
                break
            self._replies += piece
        line, _, self._replies = self._replies.partition(b"\n")
        return line.decode()

    def _end(self, command: str, server_seconds: float) -> None:
        if self._supervisor is None or self._owner != os.getpid():
            return
        self._tell(command)
        self._finish(server_seconds)

    def _finish(self, server_seconds: float = 0.0) -> None:
        """Wait until the supervisor has cleaned up and ended; keep the log."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        atexit.unregister(self._at_exit)
        try:
            supervisor.wait(server_seconds + _SUPERVISOR_SECONDS)
        except subprocess.TimeoutExpired:  # reported below, by its exit status
            supervisor.kill()
            supervisor.wait()
        finally:
            for pipe in (supervisor.stdin, supervisor.stdout):
                if pipe is not None:
                    pipe.close()
            self._close_log()
        if supervisor.returncode != 0:
            # The kernel ends the server when its supervisor ends; the rest is left to us.
            shutil.rmtree(self._folder, ignore_errors=True)
            for path in Path("/dev/shm").glob(self._shm_prefix + "*"):  # noqa: S108
                path.unlink(missing_ok=True)
            raise TritonServerFailed(
                f"the server's supervisor {_ending(str(supervisor.returncode))}:\n"
                f"{_excerpt(self._log_text)}",
                self._log_text,
            )

    def _at_exit(self) -> None:
        self.kill()


def _paths(
    value: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
) -> list[Path]:
    if value is None:
        return []
    folders = [value] if isinstance(value, str | os.PathLike) else list(value)
    paths = [Path(folder).absolute() for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise InvalidOption(f"the backend directory {path} is not a folder")
    return paths


def _backends_of(repository: Path) -> set[str]:
    """Return the backends that a repository's models name, as far as files tell."""
    found: set[str] = set()
    for model in sorted(repository.iterdir()):
        config = model / "config.pbtxt"
        if config.is_file():
            text = _COMMENT.sub("", config.read_text(encoding="utf-8"))
            found.update(_BACKEND.findall(text))
        elif any(model.glob("*/model.py")):
            found.add("python")
    return found


def _free_port(taken: set[int]) -> int:
    """Return a free port of 127.0.0.1 that is not in `taken`.

    One below the system's ephemeral range, so that no outgoing connection can get it by chance:
    neither before the server binds it nor while the server is restarted, when clients that keep
    trying to connect could even connect to themselves.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        end = int(text.split()[0])
    except OSError:  # not Linux
        end = 0
    start = 10_000
    candidates = [start + secrets.randbelow(end - start) for _ in range(200 if end > 12_000 else 0)]
    for port in [*candidates, *[0] * 20]:
        with socket.socket() as probe:
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
        if found not in taken:
            return found
    raise TritonServerFailed(f"no free port on {_HOST}")


def _readable(number: int, timeout: float) -> bool:
    poll = select.poll()  # select.select() fails above 1,023 descriptors
    poll.register(number, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _answers_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):  # not listening yet, or not a web server
        return False
    finally:
        connection.close()


def _listens(number: int, ports: set[int]) -> bool:
    """Whether a process listens on all of these TCP ports."""
    owners: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{number}/net/{table}").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended, or there is no IPv6
            continue
        for line in lines[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                port = int(fields[1].rpartition(":")[2], 16)
                owners.setdefault(port, set()).add(f"socket:[{fields[9]}]")
    held = set()
    with contextlib.suppress(OSError):  # it has ended
        for descriptor in Path(f"/proc/{number}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since the folder was read
                held.add(str(descriptor.readlink()))
    return all(owners.get(port, set()) & held for port in ports)


def _ending(status: str) -> str:
    try:
        number = int(status)
    except ValueError:
        return "ended"
    if number < 0:
        return f"was ended by {signal.Signals(-number).name}"
    return f"ended with exit status {number}"


def _excerpt(log: str) -> str:
    """Return the lines of a log that say what went wrong.

    They are warnings and errors, and what others wrote (the dynamic loader, the models). Left out
    is what is for information, tables, and what a server without a GPU always says.
    """
    lines: list[str] = []
    for line in log.splitlines():
        if line.strip() and not _UNIMPORTANT.match(line) and not _NOISE.search(line):
            lines.extend(line.replace("\\n", "\n").splitlines())
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out > 0:
        lines[_FIRST_LINES:-_LAST_LINES] = [f"({left_out} lines of the log left out)"]
    return "\n".join(lines)
