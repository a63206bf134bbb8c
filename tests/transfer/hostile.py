"""Holders that do not behave: raw servers on loopback, each with one fault."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate

from stagecast.manifest import Manifest, encode
from stagecast.pieces import Piece, encode_set, parse_numbers, pieces_of
from stagecast.transfer import Holder


@dataclass(frozen=True)
class Request:
    """What was asked: the file's whole content, and the range of it; or a bundle, and where each piece ends in it."""

    connection: socket.socket
    content: bytes
    start: int
    stop: int
    ends: tuple[int, ...] = ()

    def head(self, status: str = "", **fields: str) -> None:
        """Send a head; by default the right one."""
        right = {"Content-Length": str(self.stop - self.start)}
        if not self.ends:
            right["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{len(self.content)}"
        status = status or ("200 OK" if self.ends else "206 Partial Content")
        right.update({name.replace("_", "-"): value for name, value in fields.items()})
        lines = "".join(f"{name}: {value}\r\n" for name, value in right.items() if value)
        self.connection.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode())

    @property
    def body(self) -> bytes:
        """The right body."""
        return self.content[self.start : self.stop]


@dataclass
class Hostile:
    """A holder and what it has seen: ranges as (start, stop), and as (the file's digest, start)."""

    holder: Holder
    requests: list[tuple[int, int]] = field(default_factory=list)
    ranges: list[tuple[str, int]] = field(default_factory=list)
    seen: threading.Event = field(default_factory=threading.Event)


Answer = Callable[[Request], None]


def tell_the_manifest(request: Request) -> None:
    request.head("200 OK", Content_Range="")
    request.connection.sendall(request.content)


@contextmanager
def hostile(
    answer: Answer,
    manifest: Manifest,
    contents: Mapping[str, bytes],
    name: str = "bad",
    about: Answer = tell_the_manifest,
    *,
    tell: Answer = tell_the_manifest,
    bundled: bool = False,
) -> Iterator[Hostile]:
    """Yield a holder that answers each request for a range by ``answer``, and closes once that returns.

    ``about`` answers requests for the manifest, ``tell`` those for the pieces that it has: all of them. One that is
    ``bundled`` answers requests for bundles by ``answer``, too; another one knows no such thing.
    """
    by_digest = {file.digest: contents[file.path] for file in manifest.files}
    pieces = list(pieces_of(manifest))
    listener = socket.create_server(("127.0.0.1", 0))
    holder = Hostile(Holder(name, f"http://127.0.0.1:{listener.getsockname()[1]}"))
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            ahead = bytearray()
            while head := _read_head(connection, ahead):
                if plain := re.match("GET /(manifests|pieces)/", head):
                    content, told = (encode(manifest), about) if plain[1] == "manifests" else (_all(pieces), tell)
                    holder.seen.set()
                    told(Request(connection, content, 0, len(content)))
                    continue
                if named := re.match(r"GET /bundles/\w+/([0-9,-]+) ", head):
                    if not bundled:
                        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                        continue
                    asked = [pieces[number] for number in parse_numbers(named[1], len(pieces))]
                    parts = [_content(manifest, contents, piece) for piece in asked]
                    holder.requests += [(piece.offset, piece.offset + piece.length) for piece in asked]
                    holder.ranges += [(manifest.files[piece.file].digest, piece.offset) for piece in asked]
                    holder.seen.set()
                    ends = tuple(accumulate(map(len, parts)))
                    answer(Request(connection, b"".join(parts), 0, ends[-1], ends))
                    continue
                found = re.match(r"GET /files/(\w+) .*\r\nRange: bytes=(\d+)-(\d+)\r\n", head, re.DOTALL)
                assert found is not None
                start, stop = int(found[2]), int(found[3]) + 1
                holder.requests.append((start, stop))
                holder.ranges.append((found[1], start))
                holder.seen.set()
                answer(Request(connection, by_digest[found[1]], start, stop))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield holder
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _content(manifest: Manifest, contents: Mapping[str, bytes], piece: Piece) -> bytes:
    return contents[manifest.files[piece.file].path][piece.offset : piece.offset + piece.length]


def _all(pieces: list[Piece]) -> bytes:
    """Return the answer that says that all pieces are here, and none was given to anybody lately."""
    return encode_set((1 << len(pieces)) - 1, len(pieces)) + encode_set(0, len(pieces))


def _read_head(connection: socket.socket, ahead: bytearray) -> str:
    """Return the next request's head; what came behind it stays in ``ahead``."""
    while (end := ahead.find(b"\r\n\r\n")) < 0:
        part = connection.recv(4096)
        if not part:
            return ""
        ahead += part
    head = ahead[: end + 4].decode()
    del ahead[: end + 4]
    return head


def _until_gone(connection: socket.socket, seconds: float | None = None) -> bool:
    """Wait until the other end goes away, whatever else it has asked for meanwhile; return whether it has."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def flip_a_byte(request: Request) -> None:
    """Serve all of it, one byte of each piece wrong."""
    body = bytearray(request.body)
    for end in request.ends or (len(body) // 2 + 1,):
        body[end - 1] ^= 1
    request.head()
    request.connection.sendall(body)


def serve_well(request: Request) -> None:
    request.head()
    request.connection.sendall(request.body)


def hang(request: Request) -> None:
    """Take the request, and say nothing until the other end goes away."""
    _until_gone(request.connection)


def hang_in_the_body(request: Request) -> None:
    request.head()
    request.connection.sendall(request.body[: len(request.body) // 2])
    _until_gone(request.connection)


def close_early(request: Request) -> None:
    request.head()
    request.connection.sendall(request.body[: len(request.body) // 2])
    request.connection.shutdown(socket.SHUT_RDWR)


def close_after_a_while(request: Request) -> None:
    request.head()
    request.connection.sendall(request.body[: 16 * 1024])
    request.connection.shutdown(socket.SHUT_RDWR)


def close_at_once(request: Request) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def ignore_the_range(request: Request) -> None:
    request.head("200 OK", Content_Length=str(len(request.content)), Content_Range="")
    request.connection.sendall(request.content)


def send_html(request: Request) -> None:
    page = b"<html>Log in to the captive portal</html>"
    request.head("200 OK", Content_Length=str(len(page)), Content_Range="", Content_Type="text/html")
    request.connection.sendall(page)


def say_another_range(request: Request) -> None:
    size = len(request.content)
    request.head(Content_Range=f"bytes {request.start + 1}-{request.stop}/{size + 1}")
    request.connection.sendall(request.body)


def say_no_range(request: Request) -> None:
    request.head(Content_Range="")
    request.connection.sendall(request.body)


def say_another_length(request: Request) -> None:
    request.head(Content_Length=str(request.stop - request.start - 1))
    request.connection.sendall(request.body)


def say_another_etag(request: Request) -> None:
    request.head(ETag='"0000"')
    request.connection.sendall(request.body)


def not_found(request: Request) -> None:
    request.head("404 Not Found", Content_Length="0", Content_Range="")


def fail(request: Request) -> None:
    request.head("500 Internal Server Error", Content_Length="0", Content_Range="")


def chunked(request: Request) -> None:
    request.head(Transfer_Encoding="chunked", Content_Length="")
    request.connection.sendall(f"{len(request.body):x}\r\n".encode() + request.body + b"\r\n0\r\n\r\n")


def speak_in_tongues(request: Request) -> None:
    request.connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


def endless_head(request: Request) -> None:
    while True:
        request.connection.sendall(b"X-Header: " + b"x" * 1000 + b"\r\n")


def trickle(request: Request, status: str = "") -> None:
    """Send a byte now and then, for as long as somebody waits for more: never silent for long, and never done."""
    request.head(status)
    for place in range(len(request.body) - 1):
        request.connection.sendall(request.body[place : place + 1])
        if _until_gone(request.connection, 0.01):
            return
    _until_gone(request.connection)


def change_the_etag(request: Request) -> None:
    """Serve well what lies in front, and the rest of the file as of another one, as where it was replaced meanwhile."""
    etag = '"replaced"' if request.start else '"first"'
    request.head(ETag=etag)
    request.connection.sendall(request.body)


def send_a_page_as_the_range(request: Request) -> None:
    """Send a proxy's page with the very status, range and length that were asked for."""
    request.head(Content_Type="text/html; charset=utf-8")
    request.connection.sendall(b"<html>Blocked</html>".ljust(len(request.body)))


def send_a_page_as_an_error(request: Request) -> None:
    page = b"<html>Bad gateway</html>"
    request.head("502 Bad Gateway", Content_Length=str(len(page)), Content_Range="", Content_Type="text/html")
    request.connection.sendall(page)


def send_elsewhere(request: Request) -> None:
    request.head("302 Found", Content_Length="0", Content_Range="", Location="http://127.0.0.1:1/login")


def close_in_the_head(request: Request) -> None:
    request.connection.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Le")
    request.connection.shutdown(socket.SHUT_RDWR)


def serve_another_file(request: Request) -> None:
    """Serve bytes of the right number that are not the file's at all."""
    request.head()
    request.connection.sendall(bytes(len(request.body)))


def send_too_much(request: Request) -> None:
    request.head()
    request.connection.sendall(request.body + b"surplus")
