"""Upstream: opens one file behind ``http``, ``https`` or ``file``, from an offset on."""

from __future__ import annotations

import http.client
import io
import os
import re
import stat
import urllib.request
from collections.abc import Callable
from email.message import Message
from typing import IO, Any, Final, NamedTuple
from urllib.error import HTTPError, URLError

from stagecast.address import is_local, local_path, shown
from stagecast.errors import BadInput, HolderFailed, SourceRefused
from stagecast.pieces import parse_content_range

REDIRECTS: Final = 5
_TEMPORARY: Final = frozenset({408, 425, 429})
"""The 4xx statuses that mean "not now" instead of "no" (RFC 9110 section 15.5.9, RFC 8470, RFC 6585)."""
_WHOLE_SIZE = re.compile(r"bytes \*/(\d{1,19})")

Body = http.client.HTTPResponse | io.BufferedReader | io.BytesIO


class Head(NamedTuple):
    """What a source says before its first byte.

    ``start`` is where its bytes begin: the offset that was asked for, or 0 where the source starts over. ``size`` is
    the whole file's, in bytes. ``validator`` changes with the content (an ETag, a date); empty if there is none.
    """

    start: int
    size: int | None
    validator: str
    media_type: str = ""


class Opened(NamedTuple):
    """An open source: close ``body`` in the end. ``length`` is the bytes that will come from it, None if unknown."""

    head: Head
    body: Body
    length: int | None


class Request(NamedTuple):
    """What to ask for: see `Stream`.

    ``heard`` is called whenever the source answered something on the way, ``connected`` when it took a connection.
    """

    uri: str
    offset: int
    validator: str
    head_only: bool
    last: int | None
    stall: float
    heard: Callable[[], None]
    connected: Callable[[], None] = lambda: None

    def headers(self) -> dict[str, str]:
        """Return the headers that ask for it."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "stagecast"}
        if self.offset or self.last is not None:
            headers["Range"] = f"bytes={self.offset}-{'' if self.last is None else self.last}"
        if self.offset and self.validator and not self.validator.startswith("W/"):
            headers["If-Range"] = self.validator  # a weak one is not allowed there (RFC 9110 section 13.1.5)
        return headers


def open_source(request: Request) -> Opened:
    """Open the source; blocks. Raises what `explained` puts into words."""
    return _open_file(request) if is_local(request.uri) else _open_web(request)


def _open_file(request: Request) -> Opened:
    path = local_path(request.uri)
    if not stat.S_ISREG(path.stat().st_mode):  # before opening it: a pipe would hang
        raise SourceRefused(str(path), "it is not a regular file")
    body = path.open("rb")
    state = os.fstat(body.fileno())
    validator = file_validator(state)
    fits = request.offset <= state.st_size and request.validator in {"", validator}
    start = request.offset if fits else 0
    body.seek(start)
    return Opened(Head(start, state.st_size, validator), body, 0 if request.head_only else state.st_size - start)


def file_validator(state: os.stat_result) -> str:
    """Return what changes when a local file's content does."""
    return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ino}"


def _open_web(request: Request) -> Opened:
    method = "HEAD" if request.head_only else "GET"
    asked = urllib.request.Request(request.uri, headers=request.headers(), method=method)  # noqa: S310 - see address.py
    try:
        response = _opener(request).open(asked, timeout=request.stall)
    except HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not asked.has_header("Range"):
                raise
            size = _WHOLE_SIZE.fullmatch(error.headers.get("Content-Range", ""))
        if size and int(size[1]) == request.offset:  # every byte had arrived already
            return Opened(Head(request.offset, request.offset, _validator(error.headers)), io.BytesIO(), 0)
        return _open_web(request._replace(offset=0, last=None))
    try:
        return _answered(request, response)
    except BaseException:
        response.close()
        raise


def _answered(request: Request, response: http.client.HTTPResponse) -> Opened:
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise SourceRefused(shown(request.uri), f"it sends the file encoded as {encoding}, which was not asked for")
    length = headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() and "Transfer-Encoding" not in headers else None
    start, count = 0, size
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        start, end, size = parse_content_range(headers.get("Content-Range", ""))
        count = end - start
        if start != request.offset:
            raise HolderFailed(shown(request.uri), f"sends bytes from {start:,} on, asked for {request.offset:,}")
    elif response.status != http.HTTPStatus.OK:
        raise SourceRefused(shown(request.uri), f"answers {response.status} {response.reason}".rstrip())
    head = Head(start, size, _validator(headers), headers.get_content_type() if "Content-Type" in headers else "")
    return Opened(head, response, 0 if request.head_only else count)


def _validator(headers: Message) -> str:
    return str(headers.get("ETag") or headers.get("Last-Modified") or "")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = REDIRECTS
    max_repeats = REDIRECTS

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self._heard()
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            following.method = req.get_method()  # a HEAD that is redirected stays one
        return following


class _Http(urllib.request.HTTPHandler):
    """Opens ``http``, and says when the connection stands."""

    def __init__(self, connected: Callable[[], None]) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_telling(http.client.HTTPConnection, self._connected), req)


class _Https(urllib.request.HTTPSHandler):
    """The same for ``https``."""

    def __init__(self, connected: Callable[[], None]) -> None:
        super().__init__()
        self._connected = connected

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_telling(http.client.HTTPSConnection, self._connected), req)


def _telling(
    kind: type[http.client.HTTPConnection], connected: Callable[[], None]
) -> Callable[..., http.client.HTTPConnection]:
    class Telling(kind):  # type: ignore[misc, valid-type]  # one of two
        def connect(self) -> None:
            super().connect()
            connected()

    return Telling


def _opener(request: Request) -> urllib.request.OpenerDirector:
    # Built by hand: the usual set would follow a redirect to ftp as well.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Http(request.connected),
        _Https(request.connected),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(request.heard),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def explained(uri: str, error: BaseException) -> BaseException:
    """Return the error as `SourceRefused` (it is final) or `HolderFailed` (it may pass); others as they are."""
    where = shown(uri)
    if isinstance(error, HTTPError):
        why = f"answers {error.code} {error.reason}".rstrip()
        is_final = error.code < 500 and error.code not in _TEMPORARY
        return SourceRefused(where, why) if is_final else HolderFailed(where, why)
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, TimeoutError):
        return HolderFailed(where, "it hangs: not a byte in time")
    if isinstance(reason, (str, FileNotFoundError, PermissionError, http.client.InvalidURL, ValueError)):
        return SourceRefused(where, str(reason))  # a ValueError too: a certificate or a redirect that is not valid
    if isinstance(reason, (OSError, http.client.HTTPException, BadInput)):
        return HolderFailed(where, str(reason) or type(reason).__name__)
    return error
