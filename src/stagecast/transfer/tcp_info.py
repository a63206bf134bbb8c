"""What the kernel knows of a TCP connection (Linux, ``struct tcp_info``)."""

from __future__ import annotations

import socket
import struct
from math import inf
from typing import Final

_SIZE: Final = 192
_RTT: Final = 68
_BUSY: Final = 168
"""Offsets of ``tcpi_rtt`` (32 bits) and ``tcpi_busy_time`` (64), both in microseconds; the latter since Linux 4.10."""


def said(connection: socket.socket) -> str:
    """Return the value of the header `stagecast.transfer.waits.FIELD` for a connection; empty where nobody can tell."""
    if (found := _read(connection)) is None:
        return ""
    rtt, busy = found
    return f"busy={busy}; rtt={rtt}"


def round_trip(connection: socket.socket) -> float:
    """Return the seconds of a connection's round trip, as measured so far; `inf` where nobody can tell."""
    found = _read(connection)
    return inf if found is None else found[0] / 1e6


def _read(connection: socket.socket) -> tuple[int, int] | None:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except OSError:
        return None
    if len(info) < _SIZE:
        return None
    return struct.unpack_from("=I", info, _RTT)[0], struct.unpack_from("=Q", info, _BUSY)[0]
