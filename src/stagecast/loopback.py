"""Ports of loopback: which are free, and whether who listens there answers."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
from typing import Final

HOST: Final = "127.0.0.1"
_PORTS: Final = range(20000, 32000)
"""Below the range that Linux takes for outgoing connections, so that a port found free stays so."""
_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on, another one than the last few thousand calls gave."""
    if len(_given) > len(_PORTS) // 2:
        _given.clear()
    port = next(port for port in random.sample(_PORTS, len(_PORTS)) if port not in _given and is_free(port))
    _given.add(port)
    return port


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port."""
    with socket.socket() as probe:
        # As servers do, so that connections that are about to be forgotten do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            probe.bind((HOST, port))
            return True
        return False


async def accepts(port: int, host: str = HOST) -> bool:
    """Tell whether something accepts connections."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True
    return False


async def is_ready(port: int, host: str = HOST) -> bool:
    """Tell whether an HTTP server says that it is ready, or, where it has no word for that, that it is well."""
    status = await _status(host, port, "/readyz")
    return (await _status(host, port, "/healthz") if status == 404 else status) == 200


async def _status(host: str, port: int, path: str) -> int:
    with suppress(OSError, TimeoutError, ValueError, IndexError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                return int((await reader.readline()).split()[1])
            finally:
                writer.close()
    return 0
