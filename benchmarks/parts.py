"""What a byte costs on this machine, part by part, with nothing of ours in between: the bound for whoever keeps bytes.

Each part is done alone, in processor seconds: a file sent over loopback (`sendfile`) and received into a buffer, both
ends; a buffer hashed (BLAKE3); a buffer written into a new file. Whoever receives, hashes and keeps a byte pays all of
them, and no number of streams makes more cores.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from material import warm

BUFFER = 1 << 20
WRITTEN = 1 << 18
ROUNDS = 3


@dataclass(frozen=True)
class Parts:
    """Processor seconds per GB."""

    loopback: float
    hashing: float
    writing: float

    @property
    def whole(self) -> float:
        """All of them."""
        return self.loopback + self.hashing + self.writing

    def said(self, medium: str, cores: int, iperf3: float, rsync: float) -> str:
        """Return what follows from it, beside the rates (bytes per second) of those who are to be beaten."""
        most, kept = cores / self.whole, cores / (self.loopback + self.writing)
        wanted = [f"{factor:g} x {name} is {factor * rate / 1e9:.2f} GB/s"
                  for factor, name, rate in ((0.8, "iperf3", iperf3), (3.0, "rsync", rsync)) if rate]  # fmt: skip
        return (
            f"The bound on {medium}, measured part by part in CPU s/GB: over loopback {self.loopback:.2f} (both ends), "
            f"BLAKE3 {self.hashing:.2f}, into a new file {self.writing:.2f}. {cores} cores that never wait give "
            f"{most:.2f} GB/s to who receives, hashes and keeps, {kept:.2f} GB/s without hashing. {'; '.join(wanted)}."
        )


def measure(file: Path, folder: Path) -> Parts:
    """Return the parts' medians for that file, read from the page cache, and for new files in the folder."""
    return Parts(_median(lambda: _loopback(file), file), _median(lambda: _hash(file), file),
                 _median(lambda: _write(file, folder / "new"), file))  # fmt: skip


def _median(part: Callable[[], float], file: Path) -> float:
    found, size = list[float](), file.stat().st_size
    for _ in range(1 + ROUNDS):
        warm(2 * size)
        found.append(part())
    return statistics.median(found[1:]) / size * 1e9


def _loopback(file: Path) -> float:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = os.fork()
        if not sender:
            _send(file, listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            buffer, began = bytearray(BUFFER), time.process_time()
            while connection.recv_into(buffer, BUFFER, socket.MSG_WAITALL):
                pass
            received = time.process_time() - began
    used = os.wait4(sender, 0)[2]
    return received + used.ru_utime + used.ru_stime


def _send(file: Path, port: int) -> None:
    with socket.socket() as connection, file.open("rb") as source:
        # Everybody may take it, and it has no timer, as the system's own may have.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        connection.connect(("127.0.0.1", port))
        size, done = file.stat().st_size, 0
        while done < size:
            done += os.sendfile(connection.fileno(), source.fileno(), done, BUFFER)
    os._exit(0)


def _hash(file: Path) -> float:
    buffer = os.urandom(BUFFER)
    began = time.process_time()
    for _ in range(0, file.stat().st_size, BUFFER):
        blake3(buffer).digest()
    return time.process_time() - began


def _write(file: Path, into: Path) -> float:
    buffer = os.urandom(WRITTEN)
    with into.open("wb", buffering=0) as target:
        began = time.process_time()
        for _ in range(0, file.stat().st_size, WRITTEN):
            target.write(buffer)
        used = time.process_time() - began
    into.unlink()
    return used
