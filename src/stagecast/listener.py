"""A listener: a socket that is bound before anything else happens, and the server that answers on it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stagecast.errors import BadInput


class Endpoint(NamedTuple):
    """Where to listen. Port 0 stands for a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def is_wildcard(self) -> bool:
        """Tell whether it stands for every address of this machine."""
        return self.host in {"", "0.0.0.0", "::"}  # noqa: S104  # compared, not bound


def parse_endpoint(text: str, option: str) -> Endpoint:
    """Return the endpoint that ``text`` says: ``host:port``, ``[::1]:port``. Raises `BadInput`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise BadInput(f"{option} is {text!r}; write it like 127.0.0.1:8080")
    return Endpoint(host.strip("[]"), int(port))


def check_open(endpoint: Endpoint, secret: str, *, allowed: bool, option: str) -> None:
    """Raise `BadInput` where a listener outside loopback would ask nobody for a secret (law L12)."""
    if not secret and not allowed and not endpoint.is_loopback:
        raise BadInput(
            f"{endpoint.host or '*'} can be reached from other machines, and without a secret anybody could use it: "
            f"set {option}, or say --allow-unauthenticated"
        )


@contextlib.contextmanager
def bound(endpoint: Endpoint) -> Iterator[socket.socket]:
    """Yield a listening socket. Raises `BadInput` where the address cannot be had."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((endpoint.host, endpoint.port))
        listening.listen(1024)
        listening.setblocking(False)  # noqa: FBT003  # the standard library's own form
    except OSError as error:
        listening.close()
        raise BadInput(
            f"cannot listen on {endpoint.host}:{endpoint.port}: {error.strerror}; choose another address with --listen"
        ) from error
    with listening:
        yield listening


class _Corked:
    """A transport that sends what one turn of the loop has written with one call.

    uvicorn writes a response's head and body apart. Between the two a process can be killed, or lose its processor, and
    a load balancer cannot ask another replica once it has seen the head. In one call they leave together or not at all.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        """Send ``data`` at the end of this turn of the loop."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is left, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            if not self._transport.is_closing():
                self._transport.write(data)


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own form
        super().connection_made(_Corked(transport))  # type: ignore[arg-type]  # all of a transport that it uses


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to whoever runs the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serving(application: Any, listening: socket.socket) -> AsyncGenerator[None, None]:
    """Answer on a bound socket for as long as the block lasts; requests under way get a second to end."""
    config = uvicorn.Config(
        application, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, loop="none",
        http=_Protocol, server_header=False, proxy_headers=False, backlog=1024, timeout_keep_alive=30,
    )  # fmt: skip
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]), name="server")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)
