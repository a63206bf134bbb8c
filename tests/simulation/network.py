"""The network between each process and the server.

A connection keeps the order, as TCP does: messages take a random time, stay in the network while it is cut, and may
still arrive after whoever sent them has given up or died.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.client import Client
    from tests.simulation.server import Server


@dataclass
class Noise:
    """What the network does to messages, as chances from 0 to 1."""

    slow: float = 0.02
    drop_delivery: float = 0.0
    repeat_delivery: float = 0.0
    drop_answer: float = 0.0
    lag: float = 0.05
    """A consumer that lags: what is overwritten meanwhile is never delivered."""


class Line:
    """One connection between a client and the server; each direction keeps its order."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server = server
        self.client = client
        self.generation = server.generation
        self.is_cut = client.is_cut
        self.is_gone = False
        """The server does not have it any more."""
        self.is_given_up = False
        """The client does not have it any more."""
        self.subscriptions: dict[str, bool] = {}
        self._up_until = self._down_until = 0.0
        self._held_up: list[tuple[Any, ...]] = []
        self._held_down: list[tuple[Any, ...]] = []

    def up(self, *message: Any) -> None:
        """Send something to the server."""
        if self.is_cut:
            self._held_up.append(message)
            return
        self._up_until = max(self._up_until, self.server.delay())
        self.server.process.post_at(self._up_until, self.server.hear, self, *message)

    def down(self, *message: Any) -> None:
        """Send something to the client."""
        if self.is_gone or self.is_given_up:
            return
        if self.is_cut:
            self._held_down.append(message)
            return
        self._down_until = max(self._down_until, self.server.delay())
        self.client.process.post_at(self._down_until, self.client.hear, self, *message)

    def hold(self, seconds: float) -> None:
        """Let the client read what comes from now on no earlier than in so many seconds."""
        self._down_until = max(self._down_until, self.server.loop.time() + seconds)

    def cut(self) -> None:
        """Let nothing through; what is sent stays in the network."""
        self.is_cut = True

    def heal(self) -> None:
        """Let everything through again that waited."""
        self.is_cut = False
        up, down, self._held_up, self._held_down = self._held_up, self._held_down, [], []
        if self.is_given_up and up:
            # Its sender is gone; how much of it the network still carries is anybody's guess.
            up = up[: self.server.loop.random.randrange(len(up) + 1)]
            self.server.count("publish after its sender had given up", len(up))
        for message in up:
            self.up(*message)
        if self.is_given_up:
            self.up("bye")
        for message in down:
            self.down(*message)
