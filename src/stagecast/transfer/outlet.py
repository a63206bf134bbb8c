"""What leaves on one connection to a client: heads, and bytes of files that never pass through this process."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from stagecast.transfer.bundles import Part
from stagecast.transfer.sends import Sending, Sends

_STEP: Final = 1024 * 1024
_BUFFER: Final = 256 * 1024
"""Bytes that are read at a time where TLS is in between, and the kernel cannot send a file by itself."""


class Outlet:
    """Use in one thread. ``sends`` is told of every byte of a file. All raises `OSError` when the client goes."""

    def __init__(self, connection: socket.socket, sends: Sends) -> None:
        self._connection = connection
        self._sends = sends
        self._is_sealed = isinstance(connection, ssl.SSLSocket)

    def say(self, head: bytes, *, more: bool) -> None:
        """Send a head; with ``more`` not before what follows: a small file and its head leave in one packet."""
        self._connection.sendall(head, socket.MSG_MORE if more and not self._is_sealed else 0)

    def send(self, file: int, start: int, stop: int, is_here: Callable[[int, int], bool], sending: Sending) -> None:
        """Send bytes of an open file, as long as ``is_here`` says, of what has left, that it is still right."""
        send = self._send_read if self._is_sealed else self._send_unread
        while start < stop:
            sent = send(file, start, stop - start)
            if sent == 0:
                raise OSError("the file became shorter while it was sent")
            self._sends.count(sending, sent)
            start += sent
            if not is_here(start, stop):
                raise OSError("what was sent turned out not to be verified")

    def send_parts(self, parts: Sequence[Part], sendings: Sequence[Sending]) -> None:
        """Send one part after the other, each counted for the sending in the same place."""
        with self._corked():
            for part, sending in zip(parts, sendings, strict=True):
                file = os.open(part.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self.send(file, part.start, part.stop, lambda _, __, part=part: part.is_here(), sending)  # type: ignore[misc]
                finally:
                    os.close(file)

    @contextmanager
    def _corked(self) -> Iterator[None]:
        """Let small parts leave together, in full packets."""
        if self._is_sealed:
            yield
            return
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        yield
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _send_unread(self, file: int, start: int, most: int) -> int:
        return os.sendfile(self._connection.fileno(), file, start, min(_STEP, most))

    def _send_read(self, file: int, start: int, most: int) -> int:
        portion = os.pread(file, min(_BUFFER, most), start)
        self._connection.sendall(portion)
        return len(portion)
