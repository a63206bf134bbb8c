"""What the kernel knows of a TCP connection (Linux, ``struct tcp_info``)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

_SIZE: Final = 192
_RTT: Final = 68
_BUSY: Final = 168
"""Offsets of ``tcpi_rtt`` (32 bits) and ``tcpi_busy_time`` (64), both in microseconds; the latter since Linux 4.10."""


def said(connection: socket.socket) -> str:
    """Return the value of the header `stagecast.transfer.waits.FIELD` for a connection; empty where nobody can tell."""
    with suppress(OSError):
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
        if len(info) == _SIZE:
            (rtt,), (busy,) = struct.unpack_from("=I", info, _RTT), struct.unpack_from("=Q", info, _BUSY)
            return f"busy={busy}; rtt={rtt}"
    return ""
