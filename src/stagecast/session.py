"""A session with a replica, or with the load balancer before many of them: requests, and the event stream (WIRE 3).

It sends the highest revision that it has seen, so that no replica ever shows it an older picture, and it rides over
a replica that is behind or has just died: what changes nothing is asked again, what changes something only if it
cannot have arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Self
from urllib.parse import urlencode

import aiohttp
import msgspec
from yarl import URL

from stagecast import answers, revision
from stagecast.balancer import NO_REPLICA
from stagecast.errors import BadInput, StagecastError
from stagecast.event_stream import EventParser, StreamEvent

DEFAULT_URL: Final = "http://127.0.0.1:8080"
PATIENCE: Final = 5.0
"""Seconds for which a request that can be repeated is repeated."""
STREAM_PATIENCE: Final = 60.0
"""Seconds for which a broken event stream is opened again before somebody is told."""
SILENCE: Final = 12.0
"""Seconds without a byte after which an event stream is given up; the server sends a comment every 5 s."""
_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 1.0
_NOT_TAKEN: Final = frozenset({"replica_behind", "not_ready"})
"""Refusals after which nothing was done, so that even what changes something may be asked again."""
_NO_KEY: Final = ": the key is missing or another one; give it by STAGECAST_API_KEY, or with --api-key"
_GATEWAY: Final = frozenset({502, 503, 504})


class ApiError(StagecastError):
    """A replica refused. ``code`` is its stable word, ``status`` the HTTP status."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]  # the server's word: another one with each answer
        self.code = code  # type: ignore[misc]  # the same


class Unreachable(StagecastError):
    """Nobody answers at the address."""

    code = "unreachable"
    status = 503

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"no replica answers at {url} ({why}); start one, or say where with --url or STAGECAST_URL")


class Unanswered(StagecastError):
    """The connection broke under a request of which nobody can tell what a second one would do."""

    code = "unanswered"
    status = 502

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url} broke off before it answered ({why}); see with `stagecast ops` whether it took it up")


class Answer(NamedTuple):
    """A response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """What became of a request that was not answered as asked."""

    error: StagecastError
    may_repeat: bool


class Session:
    """``async with Session(url) as session``. Not to be shared between event loops.

    ``patience`` is how many seconds a request that failed on the way is repeated for; 0 asks once. ``revision`` is
    what an earlier client of the same cluster has seen: no answer will be older than that.

    Raises:
        BadInput: ``url`` does not begin with ``http://`` or ``https://``.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str = "", patience: float = PATIENCE, revision: str = ""
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is no address of a replica; write it with its scheme, like {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self.revision = revision
        """The highest that a replica has answered with."""
        self.replica = ""
        """The name of the one that answered last."""
        self._patience = patience
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections' pool."""
        self._session = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        is_idempotent: bool = False,
    ) -> Answer:
        """Return the answer to a request. One that ``is_idempotent``, as a GET is, may be sent again unanswered.

        Raises:
            ApiError: it was refused.
            Unanswered: the connection broke, and it may have been taken up.
            Unreachable: nobody answered in time.
        """
        url = _url(self.url, path, query)
        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + self._patience, _FIRST_DELAY
        while True:
            outcome = await self._attempt(method, url, body, is_idempotent=is_idempotent or method == "GET")
            if isinstance(outcome, Answer):
                return outcome
            if not outcome.may_repeat or loop.time() + delay > deadline:
                raise outcome.error
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def stream(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of every operation, beginning with a ``snapshot``, from whichever replica lives.

        Raises:
            ApiError: the stream is refused.
            Unreachable: it could not be opened again for `STREAM_PATIENCE` seconds.
        """
        loop, last, delay = asyncio.get_running_loop(), "", _FIRST_DELAY
        alive = loop.time()
        while True:
            try:
                async with self._opened_stream(last) as response:
                    async for event in _events(response):
                        alive, delay, last = loop.time(), _FIRST_DELAY, event.id or last
                        self._see(event.id)
                        yield event
                why = "the event stream ended"
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or "the event stream fell silent"
            if loop.time() - alive > STREAM_PATIENCE:
                raise Unreachable(self.url, why)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    @asynccontextmanager
    async def _opened_stream(self, last: str) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        # A snapshot must not be older than what this client has been told: a retried operation would look ended in it.
        seen = {"Stagecast-Min-Revision": self.revision} if self.revision else {}
        headers = {"Accept": "text/event-stream"} | seen | ({"Last-Event-ID": last} if last else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE)
        url = _url(self.url, "/api/operations/stream")
        async with self._pool.get(url, headers=headers, timeout=timeout) as response:
            if response.status in _GATEWAY:
                raise aiohttp.ClientConnectionError(f"status {response.status}")
            if response.status != 200:
                answer = Answer(response.status, response.headers, await response.read())
                raise _refusal(answer)
            self.replica = response.headers.get("Stagecast-Replica", "")
            yield response

    @property
    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("use the client in `async with`")
        return self._session

    async def _attempt(self, method: str, url: URL, body: object, *, is_idempotent: bool) -> Answer | Failure:
        try:
            answer = await self._once(method, url, body)
        except aiohttp.ClientConnectorError as error:
            return Failure(Unreachable(self.url, error.os_error.strerror or str(error)), may_repeat=True)
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or type(error).__name__
            if is_idempotent:
                return Failure(Unreachable(self.url, why), may_repeat=True)
            return Failure(Unanswered(self.url, why), may_repeat=False)
        if answer.status < 400:
            return answer
        refusal = _refusal(answer)
        return Failure(refusal, may_repeat=_may_repeat(refusal, is_idempotent=is_idempotent))

    async def _once(self, method: str, url: URL, body: object) -> Answer:
        headers = {"Stagecast-Min-Revision": self.revision} if self.revision else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        async with self._pool.request(method, url, data=data, headers=headers) as response:
            answer = Answer(response.status, response.headers, await response.read())
        self.replica = response.headers.get("Stagecast-Replica", self.replica)
        asked = headers.get("Stagecast-Min-Revision", "")
        self._see(response.headers.get("Stagecast-Revision", ""), asked if answer.status < 400 else "")
        return answer

    def _see(self, text: str, asked: str = "") -> None:
        """Keep the later revision; of another log also one that was given when just the held one was asked for.

        So a client gets away from the revisions of a log that was lost, though the next one's clock is behind it.
        """
        held, seen = revision.parse(self.revision), revision.parse(text)
        if held is None or seen is None:
            self.revision = text if seen is not None else self.revision
        elif held.reached_by(seen) or (asked == self.revision and seen.identity != held.identity):
            self.revision = text


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[StreamEvent, None]:
    parser = EventParser()
    async for chunk in response.content.iter_any():
        for event in parser.feed(chunk):
            yield event


def _url(base: str, path: str, query: Mapping[str, str] | None = None) -> URL:
    given = {key: value for key, value in (query or {}).items() if value}
    return URL(f"{base}{path}" + (f"?{urlencode(given)}" if given else ""), encoded=True)


def _refusal(answer: Answer) -> ApiError:
    try:
        fault = msgspec.json.decode(answer.body, type=answers.Refusal).error
    except msgspec.DecodeError:
        # A balancer may stand before replicas that are all away.
        who = "no Stagecast replica answers there" if answer.status in _GATEWAY else "that is no Stagecast replica"
        return ApiError(answer.status, "", f"{who}: it answered {answer.status}")
    # The server says nothing else to whom it does not know; here it can be said what is missing.
    message = fault.message + _NO_KEY if answer.status == 401 else fault.message
    return ApiError(answer.status, fault.code or "", message)


def _may_repeat(refusal: ApiError, *, is_idempotent: bool) -> bool:
    if refusal.code in _NOT_TAKEN:
        return True
    # Without a code it is no replica's word but a balancer's: the replica died under the request. Ours has one.
    return is_idempotent and refusal.status in _GATEWAY and refusal.code in {"", NO_REPLICA}
