"""The programs that move the same files: each a server where it needs one, and a command per case."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from material import Case, warm
from processes import child, cpu_seconds

PACKAGES = "nginx-light curl aria2 rsync rclone iperf3 openssl"
INSTALL = f"apt-get update && apt-get install -y --no-install-recommends {PACKAGES}"


@dataclass(frozen=True)
class Ran:
    """One transfer: seconds, processor seconds of both ends, and the most memory that each end had, in bytes."""

    seconds: float
    cpu: float
    memory_there: int
    memory_here: int


Run = Callable[[Case, Path], Ran]
"""Moves a case into a folder that is there and empty."""


@dataclass(frozen=True)
class Contender:
    """``programs`` must be on the PATH; ``start`` runs its server, if any, over a folder of cases for a ``with``."""

    name: str
    programs: tuple[str, ...]
    start: Callable[[Path], Iterator[Run]]
    files: range = range(1, 1 << 30)
    """How many files it moves at a time."""

    def moves(self, case: Case) -> bool:
        """Tell whether it takes part in a case."""
        return len(case.sizes) in self.files and (not case.contenders or self.name in case.contenders)

    def missing(self) -> list[str]:
        """Return the programs that are not installed."""
        return [program for program in self.programs if shutil.which(program, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(command: list[str], port: int, *, is_asked: bool = True) -> Iterator[int]:
    """Run a server in the foreground until the block ends; yield its process id once it listens.

    One that is not asked whether it does serves only the first who connects.
    """
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"PATH": _path()}
    )
    try:
        for _ in range(500):
            if _listens(port) if not is_asked else _answers(port):
                break
            time.sleep(0.01)
        else:
            raise RuntimeError(f"{command[0]} did not start")
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _listens(port: int) -> bool:
    """Tell whether somebody listens on a port, without a word to him."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in lines)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for one in children for each in _family(int(one)))]


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _watched(pid: int) -> int:
    """Wait until a process has ended, but not for its status; return its peak memory.

    Looked at fifty times a second: what wait4(2) says of it includes the process that started it.
    """
    peak, descriptor = 0, os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], 0.02)[0]:
            peak = max(peak, sum(map(_peak, _family(pid))))
    except FileNotFoundError:
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)
    return peak


def _timed(command: list[str], server: int | None, case: Case, feed: str = "") -> Ran:
    """Run a client to its end, and count it together with its server."""
    warm(2 * case.total)
    there = _family(server) if server else []
    for pid in there:
        _forget_peak(pid)
    before, began = sum(map(cpu_seconds, there)), time.monotonic()
    pipe = subprocess.PIPE if feed else subprocess.DEVNULL
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=complaints, text=True,
            env=os.environ | {"PATH": _path(), "RCLONE_CONFIG": "/dev/null"},
        )  # fmt: skip
        if feed and process.stdin:
            process.stdin.write(feed)
            process.stdin.close()
        peak = _watched(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {complaints.read()[-500:]}")
    # A server that forks for each client, as rsync does, has its children's time counted when they have ended.
    cpu = sum(map(cpu_seconds, [pid for pid in there if Path(f"/proc/{pid}").exists()])) - before
    return Ran(
        seconds, cpu + used.ru_utime + used.ru_stime + (_reaped(server) if server else 0.0),
        sum(_peak(pid) for pid in there if Path(f"/proc/{pid}").exists()), peak,
    )  # fmt: skip


_SEEN: dict[int, float] = {}


def _reaped(server: int) -> float:
    """Return the processor time of the server's children that have ended since the last call."""
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(") ")[2].split()
    now = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    before, _SEEN[server] = _SEEN.get(server, 0.0), now
    return now - before


_NGINX = """
daemon off; master_process on; worker_processes auto; error_log stderr crit; pid {folder}/pid;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; autoindex on; open_file_cache max=4000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@contextmanager
def _nginx(models: Path) -> Iterator[tuple[str, int]]:
    port, folder = free_port(), models.parent / f"nginx-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "conf").write_text(_NGINX.format(folder=folder, port=port, root=models))
    (models.parent).chmod(0o755)
    with _server(["nginx", "-p", str(folder), "-c", str(folder / "conf")], port) as pid:
        yield f"http://127.0.0.1:{port}", pid


def _curl(*options: str) -> Callable[[Path], Iterator[Run]]:
    """One curl for all files, over connections that it keeps."""

    def start(models: Path) -> Iterator[Run]:
        with _nginx(models) as (url, server):

            def run(case: Case, target: Path) -> Ran:
                each = (f'url = "{url}/{case.name}/{name}"\noutput = "{target / name}"\n' for name in case.files)
                return _timed(["curl", "-sSf", *options, "-K", "-"], server, case, "".join(each))

            yield run

    return start


def _aria2(connections: int) -> Callable[[Path], Iterator[Run]]:
    """Connections per file; with many files, so many of them at a time."""
    options = [
        f"-x{connections}", f"-s{connections}", f"-j{connections}", "-k1M", "--file-allocation=none", "--no-conf",
        "--quiet=true", "--disk-cache=64M",
    ]  # fmt: skip

    def start(models: Path) -> Iterator[Run]:
        with _nginx(models) as (url, server):

            def run(case: Case, target: Path) -> Ran:
                feed = "".join(f"{url}/{case.name}/{name}\n" for name in case.files)
                return _timed(["aria2c", *options, "-d", str(target), "-i", "-"], server, case, feed)

            yield run

    return start


def _rclone(models: Path) -> Iterator[Run]:
    with _nginx(models) as (url, server):

        def run(case: Case, target: Path) -> Ran:
            remote = [":http:", "--http-url", f"{url}/{case.name}/"]
            return _timed(["rclone", "copy", *remote, str(target), "--quiet", "--ignore-times"], server, case)

        yield run


def _rsync(models: Path) -> Iterator[Run]:
    """Its own daemon, without a shell in between: the fastest way that it has."""
    port, conf = free_port(), models.parent / "rsyncd.conf"
    conf.write_text(f"use chroot = no\n[models]\npath = {models}\nread only = yes\nuid = root\ngid = root\n")
    command = ["rsync", "--daemon", "--no-detach", f"--config={conf}", f"--port={port}", "--address=127.0.0.1"]
    with _server(command, port) as server:

        def run(case: Case, target: Path) -> Ran:
            source = f"rsync://127.0.0.1:{port}/models/{case.name}/"
            return _timed(["rsync", "-a", "--whole-file", source, f"{target}/"], server, case)

        yield run


def _cp(models: Path) -> Iterator[Run]:
    def run(case: Case, target: Path) -> Ran:
        return _timed(["cp", "-r", "--reflink=never", f"{models / case.name}/.", str(target)], None, case)

    yield run


def _iperf(*options: str) -> Callable[[Path], Iterator[Run]]:
    """From memory to memory, no file anywhere: what loopback itself gives."""

    def start(_: Path) -> Iterator[Run]:
        port = free_port()
        with _server(["iperf3", "-s", "-p", str(port), "-B", "127.0.0.1"], port) as server:

            def run(case: Case, _: Path) -> Ran:
                before = cpu_seconds(server)
                command = ["iperf3", "-J", "-c", "127.0.0.1", "-p", str(port), "-n", str(case.total), *options]
                told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["end"]
                cpu = cpu_seconds(server) - before
                seconds = told["sum_received"]["seconds"]
                usage = told["cpu_utilization_percent"]["host_total"] / 100 * seconds
                return Ran(seconds, cpu + usage, _peak(server), _peak(server))

            yield run

    return start


def _iperf_files(models: Path) -> Iterator[Run]:
    """From a file into a file, and nothing else: no hash, no HTTP. It may leave out the last bytes."""

    def run(case: Case, target: Path) -> Ran:
        port = free_port()
        command = ["iperf3", "-s", "-p", str(port), "-B", "127.0.0.1", "-F", str(target / case.files[0])]
        with _server(command, port, is_asked=False) as server:
            warm(2 * case.total)
            before, source = cpu_seconds(server), str(models / case.name / case.files[0])
            command = ["iperf3", "-J", "-c", "127.0.0.1", "-p", str(port), "-F", source]
            told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["end"]
            cpu = cpu_seconds(server) - before
            received = told["sum_received"]
            usage = told["cpu_utilization_percent"]["host_total"] / 100 * received["seconds"]
            whole = case.total / received["bytes"]
            return Ran(received["seconds"] * whole, cpu + usage, _peak(server), _peak(server))

    yield run


def _ours(*, sealed: bool) -> Callable[[Path], Iterator[Run]]:
    """A node's file server, and a node's pull: every piece verified, and the model published at the end."""

    def start(models: Path) -> Iterator[Run]:
        certificate = str(_certificate(models.parent)) if sealed else ""
        with child("moving.py", "serve", str(models), str(models.parent / "data"), certificate) as server:

            def run(case: Case, target: Path) -> Ran:
                # The receiving end keeps its data beside the folder that it fills.
                with child("moving.py", "pull", str(target), f"{target}-data", certificate) as puller:
                    ends = (server.pid, puller.pid)
                    for pid in ends:
                        _forget_peak(pid)
                    warm(2 * case.total)
                    before = [cpu_seconds(pid) for pid in ends]
                    said = puller.ask("stage", urls=[server.said["url"]], digest=server.said["digests"][case.name])
                    used = sum(cpu_seconds(pid) - start for pid, start in zip(ends, before, strict=True))
                    return Ran(said["seconds"], used, _peak(server.pid), _peak(puller.pid))

            yield run

    return start


def _certificate(folder: Path) -> Path:
    """Make a certificate for loopback that signs itself, with its key in the same file."""
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(path)]
    subprocess.run([*command, "-keyout", f"{path}.key"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.key").read_text())
    return path


MANY = range(2, 1 << 30)

CONTENDERS = (
    Contender("stagecast", (), _ours(sealed=False)),
    Contender("stagecast, TLS", ("openssl",), _ours(sealed=True)),
    Contender("nginx + curl", ("nginx", "curl"), _curl()),
    Contender("nginx + curl -Z", ("nginx", "curl"), _curl("-Z", "--parallel-max", "16", "--parallel-immediate"), MANY),
    Contender("nginx + aria2c, 4", ("nginx", "aria2c"), _aria2(4)),
    Contender("nginx + aria2c, 16", ("nginx", "aria2c"), _aria2(16)),
    Contender("rsync", ("rsync",), _rsync),
    Contender("nginx + rclone", ("nginx", "rclone"), _rclone),
    Contender("cp", ("cp",), _cp),
    Contender("iperf3", ("iperf3",), _iperf()),
    Contender("iperf3, reno", ("iperf3",), _iperf("-C", "reno"), range(1, 2)),
    Contender("iperf3 -F", ("iperf3",), _iperf_files, range(1, 2)),
)
