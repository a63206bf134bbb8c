"""The bytes of one upstream file, as they come.

A thread of its own opens and reads the source, so that whoever waits for the bytes can be stopped at once, even while
a name is looked up or a source hangs. Timeouts are "not a byte for so long", never "so long in total".
"""

from __future__ import annotations

import http.client
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from stagecast.address import is_local, shown
from stagecast.errors import BadInput, HolderFailed, Interrupted, SourceRefused
from stagecast.messages import Hindrance
from stagecast.upstream import Body, Head, Opened, Request, explained, file_validator, open_source

STALL: Final = 30.0
"""Seconds without a byte after which a source counts as hanging."""
_CHUNK: Final = 256 * 1024
_CHUNKS_AHEAD: Final = 16
_POLL: Final = 0.1


class Stream:
    """The bytes of one file; use as ``with Stream(...) as stream``, then read ``stream.head`` and iterate.

    ``validator`` is what the bytes before ``offset`` had: with another one the source starts over. ``stop`` set ends
    every wait within a moment. ``head_only`` asks for no bytes at all; ``last`` for none after that offset. ``waiting``
    is called ten times a second while nothing comes: with ``network`` until the connection stands, then ``source``.

    Entering and iterating raise:
        SourceRefused: the source says no, for good.
        HolderFailed: it cannot be reached, hangs for ``stall`` seconds, or closes early; asking again may help.
        Interrupted: ``stop`` was set.
    """

    head: Head

    def __init__(
        self,
        uri: str,
        offset: int = 0,
        validator: str = "",
        *,
        stop: threading.Event,
        stall: float = STALL,
        head_only: bool = False,
        last: int | None = None,
        waiting: Callable[[Hindrance], None] = lambda _: None,
    ) -> None:
        self._uri = uri
        self._waiting = waiting
        self._waits_on: Hindrance = "source" if is_local(uri) else "network"
        self._stop = stop
        self._stall = stall
        self._request = Request(uri, offset, validator, head_only, last, stall, self._note_byte, self._connected)
        self._items: queue.Queue[Head | bytes | BaseException] = queue.Queue(_CHUNKS_AHEAD)
        self._heard = time.monotonic()
        self._is_closed = False
        self._guard = threading.Lock()
        self._body: Body | None = None
        self._thread = threading.Thread(target=self._read, name=f"upstream {shown(uri)}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            head = self._next()
        except BaseException:
            self._close()
            raise
        assert isinstance(head, Head)  # noqa: S101 - the thread puts it first
        self.head = head
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._next():
            assert isinstance(chunk, bytes)  # noqa: S101 - the head was taken on entering
            yield chunk

    def _next(self) -> Head | bytes:
        self._note_byte()
        while True:
            if self._stop.is_set():
                raise Interrupted("cancel")
            try:
                item = self._items.get(timeout=_POLL)
            except queue.Empty:
                self._waiting(self._waits_on)
                if time.monotonic() - self._heard > self._stall:
                    raise HolderFailed(shown(self._uri), f"no byte for {self._stall:g} s") from None
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def _connected(self) -> None:
        self._waits_on = "source"

    def _note_byte(self) -> None:
        self._heard = time.monotonic()

    def _close(self) -> None:
        with self._guard:
            self._is_closed = True
            if self._body is not None:
                _shut(self._body)
        with suppress(queue.Empty):
            while True:
                self._items.get_nowait()  # wakes a thread that waits for room
        # A thread that is still connecting ends by its own timeout; nobody waits for that.
        self._thread.join(_POLL)

    def _read(self) -> None:
        try:
            opened = open_source(self._request)
            with self._guard:
                self._body = opened.body
            try:
                self._pass_on(opened)
            finally:
                with self._guard:
                    self._body = None
                    opened.body.close()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._put(explained(self._uri, error))

    def _pass_on(self, opened: Opened) -> None:
        if not self._put(opened.head):
            return
        left = opened.length
        while left is None or left > 0:
            chunk = opened.body.read1(_CHUNK if left is None else min(_CHUNK, left))
            if not chunk:
                break
            if left is not None:
                left -= len(chunk)
            if not self._put(chunk):
                return
        if left:
            raise HolderFailed(shown(self._uri), f"closed {left:,} bytes too early")
        if is_local(self._uri) and file_validator(os.fstat(opened.body.fileno())) != opened.head.validator:
            raise HolderFailed(shown(self._uri), "the file was changed while it was read")
        self._put(b"")

    def _put(self, item: Head | bytes | BaseException) -> bool:
        while not self._is_closed:
            with suppress(queue.Full):
                self._items.put(item, timeout=_POLL)
                return True
        return False


def probe(
    uri: str, *, stop: threading.Event, stall: float = STALL, waiting: Callable[[Hindrance], None] = lambda _: None
) -> Head:
    """Return what the source says of the file, without moving it. Raises what `Stream` raises."""
    with suppress(SourceRefused), Stream(uri, stop=stop, stall=stall, head_only=True, waiting=waiting) as stream:
        if stream.head.size:
            return stream.head
    # Signed URLs often allow GET alone, and some servers do not tell a size otherwise.
    with Stream(uri, stop=stop, stall=stall, last=0, waiting=waiting) as stream:
        return stream.head


def read(
    uri: str, limit: int, *, stop: threading.Event, stall: float = STALL,
    waiting: Callable[[Hindrance], None] = lambda _: None,
) -> bytes:  # fmt: skip
    """Return the whole small file. Raises what `Stream` raises, and `BadInput` if it is over ``limit`` bytes."""
    data = bytearray()
    with Stream(uri, stop=stop, stall=stall, waiting=waiting) as stream:
        for chunk in stream:
            data += chunk
            if len(data) > limit:
                raise BadInput(f"{shown(uri)} has more than {limit:,} bytes; that is not an index")
    return bytes(data)


def _shut(body: Body) -> None:
    # Reading blocks in another thread; closing the file would not wake it, shutting the socket down does.
    if not isinstance(body, http.client.HTTPResponse):
        return
    # A response that has ended meanwhile has no file any more (AttributeError), and nobody waits for it.
    with suppress(OSError, ValueError, AttributeError), socket.socket(fileno=os.dup(body.fileno())) as connection:
        connection.shutdown(socket.SHUT_RDWR)
