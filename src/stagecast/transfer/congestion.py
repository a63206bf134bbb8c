"""Which congestion control connections to clients have (Linux, tcp(7)).

BBR, which many systems are set to for the sake of far clients, sends by a timer. To a near client that takes more of a
processor than the bytes do, on loopback a third of the rate, and a connection that began with it never loses the timer.
So all begin with the control that Linux has by itself, and a far client gets what the system is set to.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from stagecast.transfer import tcp_info

NEAR: Final = 0.001
"""Seconds of round trip below which a client is near: on this machine, in this rack, in this building."""

_PACED: Final = "bbr"
_PLAIN: Final = ("cubic", "reno")
_LONGEST_NAME: Final = 16


def begin(listener: socket.socket) -> None:
    """Have what a listener accepts begin without a timer, where the system is set to one; else as it is set."""
    if control_of(listener).startswith(_PACED):
        for control in _PLAIN:
            with suppress(OSError):  # not loaded, or not allowed to everybody
                _take(listener, control)
                return


def settle(connection: socket.socket) -> None:
    """Give a client that turned out to be far what the system is set to."""
    if tcp_info.round_trip(connection) >= NEAR:
        with socket.socket() as fresh, suppress(OSError):
            system = control_of(fresh)
            if system.startswith(_PACED):
                _take(connection, system)


def control_of(connection: socket.socket) -> str:
    """Return the name of a connection's congestion control; empty where nobody can tell."""
    with suppress(OSError):
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _LONGEST_NAME).rstrip(b"\0").decode()
    return ""


def _take(connection: socket.socket, control: str) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())
