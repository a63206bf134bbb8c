"""Gives the models of this disk to others, over HTTP/1.1.

``GET /files/<digest>`` answers the bytes of a file, a range of them on demand, and ``GET /manifests/<digest>`` a
manifest as JSON. ``GET /pieces/<manifest's digest>`` answers two sets of pieces, each a bit per piece in the manifest's
order, the lowest bit of a byte first, filled up to whole bytes: those that are here, and those that somebody who shares
them got from here within the last half minute. ``GET /bundles/<manifest's digest>/<numbers>`` answers many whole pieces
one behind the other, ``0-63,70`` in the manifest's order, or 404 where one of them is not here. What still arrives is
served as far as it is verified.

Everything runs in threads of its own: bulk bytes never share an event loop with requests.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Final, Self

from stagecast.bulk import stand_back
from stagecast.store import Store
from stagecast.transfer import congestion
from stagecast.transfer.exchange import Exchange
from stagecast.transfer.sends import Sends

CONNECTIONS: Final = 256
"""Connections that are served at a time; a thread each. For one more, the one is given up that was idle the longest."""

TURNED_AWAY: Final = 32
"""Connections beyond those that still hear a 503, and are not just closed."""


@dataclass
class _Served:
    """A connection's thread and what it does; one that leaves was shut down to make room."""

    thread: threading.Thread
    exchange: Exchange
    is_leaving: bool = False


class FileServer:
    """Use as ``with FileServer(store, "127.0.0.1", token=secret) as server``; port 0 takes a free one.

    ``server.url`` has ``host`` as it was given. With a ``token``, each request must carry it as its bearer. With
    ``tls`` it is spoken to over TLS only.

    Entering raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self, store: Store, host: str, port: int = 0, token: str = "", connections: int = CONNECTIONS,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.host = host
        self.port = port
        self.token = token
        self._most = connections
        self._tls = tls
        self._sends = Sends()
        self._guard = threading.Lock()
        self._open: dict[socket.socket, _Served] = {}
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family, backlog=128)
        congestion.begin(self._listener)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="stagecast-serve", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            self._closing.set()
            threads = [served.thread for served in self._open.values()]
            for connection in self._open:
                _shut_down(connection)
        _shut_down(self._listener)
        self._acceptor.join()
        self._listener.close()
        for thread in threads:
            thread.join()

    @property
    def url(self) -> str:
        """Where it answers: ``http://127.0.0.1:41234``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def bytes_sent(self) -> int:
        """Bytes of files that were handed to the network since the start; only ever grows."""
        return self._sends.bytes_sent

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # Out of descriptors, or a client that left before it was accepted: the next one may fare better.
                self._closing.wait(0.05)
                continue
            if self._tls is not None:
                # Hands are shaken in the connection's own thread.
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            if not self._admit(connection):
                connection.close()

    def _admit(self, connection: socket.socket) -> bool:
        with self._guard:
            if self._closing.is_set() or len(self._open) >= self._most + TURNED_AWAY:
                return False
            store = self.store if self._has_room() else None
            exchange = Exchange(connection, store, self.token, self._sends)
            arguments = (connection, exchange)
            thread = threading.Thread(target=self._serve, args=arguments, name="stagecast-serve", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False  # the machine has no thread left for it
            self._open[connection] = _Served(thread, exchange)
            return True

    def _has_room(self) -> bool:
        """Tell whether one more connection can be served, once the one was given up that was idle the longest."""
        staying = {connection: served for connection, served in self._open.items() if not served.is_leaving}
        if len(staying) < self._most:
            return True
        idlest = min(staying, key=lambda connection: staying[connection].exchange.idle_since)
        if staying[idlest].exchange.idle_since == inf:
            return False
        staying[idlest].is_leaving = True
        _shut_down(idlest)
        return True

    def _serve(self, connection: socket.socket, exchange: Exchange) -> None:
        try:
            with contextlib.suppress(OSError):
                stand_back()
                exchange.run()
        finally:
            with self._guard:
                del self._open[connection]
            connection.close()


def _shut_down(connection: socket.socket) -> None:
    """Wake whoever waits on the socket; closing alone would leave them waiting."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
