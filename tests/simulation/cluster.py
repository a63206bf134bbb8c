"""The cluster: machines, the server between them, and the load balancer in front of the replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.life import Life, Node
from tests.simulation.loop import Loop
from tests.simulation.network import Noise
from tests.simulation.server import Server

if TYPE_CHECKING:
    from tests.simulation.client import Client
    from tests.simulation.invariants import Ledger

CLIENT_PATIENCE: Final = 4.0


@dataclass
class Answer:
    """A response as a client has it. ``status`` 0: the connection broke, or nobody answered in time."""

    status: int
    body: bytes
    revision: str
    replica: str
    asked: str


class Cluster:
    """Everything there is."""

    def __init__(self, seed: int, ledger: Ledger, *, server_skew: float, noise: Noise, pace: float) -> None:
        self.seed = seed
        self.loop = Loop(seed)
        self.server = Server(self.loop, server_skew, noise)
        self.server_since = 0.0
        self.calm_since = 0.0
        """Since when nothing that was sent is lost any more."""
        self.ledger = ledger
        self.pace = pace
        self.models: dict[str, int] = {}
        self.is_forgetful = False
        """What has ended is forgotten within seconds."""
        self.broken: set[str] = set()
        """Models whose source is gone: moving them fails."""
        self.nodes: dict[str, Node] = {}
        self._numbers = 0
        self._turn = 0
        self._clients = 0
        self.deaths: dict[str, float] = {}
        self.mourned: dict[str, Client] = {}
        """The connections of the dead: what they had sent may be on its way still."""
        ledger.begin(self)

    def number(self) -> int:
        """Return a number that was not given before."""
        self._numbers += 1
        return self._numbers

    def add(self, name: str, kind: str, skew: float) -> Node:
        """Put up a machine."""
        node = self.nodes[name] = Node(self, name, kind, skew)
        return node

    def lives(self) -> list[Life]:
        """Return the processes that live."""
        return [node.life for node in self.nodes.values() if node.life is not None and node.life.is_alive]

    # The load balancer.

    def _next(self) -> Life | None:
        """Return the replica whose turn it is; one whose port is closed is passed over."""
        able = [life for life in self.lives() if life.gate is not None]
        if not able:
            return None
        self._turn += 1
        return able[self._turn % len(able)]

    async def ask(self, method: str, path: str, min_revision: str) -> Answer:
        """Send one request through the load balancer and return the answer."""
        life = self._next()
        if life is None:
            await asyncio.sleep(0.2)
            return Answer(0, b"", "", "", min_revision)
        caller = self.loop.current
        future: asyncio.Future[Answer] = self.loop.create_future()
        life.asked[future] = caller

        def deliver(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        def respond(answer: Answer) -> None:
            life.asked.pop(future, None)
            caller.post_at(self.server.delay(), deliver, answer)

        life.process.post_at(self.server.delay(), self._arrive, life, method, path, min_revision, respond)
        try:
            async with asyncio.timeout(CLIENT_PATIENCE):
                return await future
        except TimeoutError:
            return Answer(0, b"", "", "", min_revision)
        finally:
            life.asked.pop(future, None)

    def _arrive(self, life: Life, method: str, path: str, min_revision: str, respond: Callable[[Answer], None]) -> None:
        headers = [(b"stagecast-min-revision", min_revision.encode())] if min_revision else []
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        task = asyncio.get_running_loop().create_task(self._serve(life, scope, respond))
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.loop.failures.append(f"a request ended with {task.exception()!r}")

    async def _serve(self, life: Life, scope: Any, respond: Callable[[Answer], None]) -> None:
        status, at, body = 0, "", b""

        async def send(message: Any) -> None:
            nonlocal status, at, body
            if message["type"] == "http.response.start":
                status = message["status"]
                at = next((value.decode() for key, value in message["headers"] if key == b"Stagecast-Revision"), "")
            else:
                body = message["body"]

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        assert life.gate is not None
        await life.gate(scope, receive, send)
        asked = scope["headers"][0][1].decode() if scope["headers"] else ""
        if status == 200 and scope["method"] == "GET":
            self.ledger.answered(life, body)
        respond(Answer(status, body, at, life.id, asked))

    def reset(self, life: Life) -> None:
        """Break the connections of those who wait for a process that has died."""
        for future, caller in life.asked.items():
            caller.post_at(self.server.delay(), _break, future)
        life.asked.clear()


def _break(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_result(Answer(0, b"", "", "", ""))
