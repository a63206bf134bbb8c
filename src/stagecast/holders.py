"""Who can give a model: the living nodes that hold it or are just getting it, and what they say it consists of."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Final

from stagecast.errors import StagecastError
from stagecast.manifest import Manifest
from stagecast.node import Node
from stagecast.presence import Presence
from stagecast.stocktaking import Wanted, manifest_here
from stagecast.tracker import Tracker
from stagecast.transfer import Holder, fetch_manifest
from stagecast.work import in_thread

PATIENCE: Final = 0.8
"""Seconds for a manifest that a plan is made with: whoever asks for the plan waits for the answer twice as long."""


def holders(tracker: Tracker, presence: Presence, besides: str, model: str, digest: str) -> list[Holder]:
    """Return the living nodes, one excepted, that hold this revision of a model."""
    fold = tracker.fold
    return [
        Holder(holding.node, fold.nodes[holding.node].files)
        for holding in fold.holders(model)
        if holding.digest == digest and holding.node != besides and presence.is_node_alive(holding.node)
    ]


def receivers(tracker: Tracker, presence: Presence, besides: str, model: str) -> list[Holder]:
    """Return the living nodes, one excepted, that are just getting a model; of which revision, they say themselves.

    Their operations tell: nobody announces pieces, and a node that has died or paused is no receiver any more.
    """
    nodes = {
        record.node: tracker.fold.nodes.get(record.node)
        for record in tracker.fold.live()
        if (record.kind, record.model) == ("staging", model) and record.state in {"running", "stalled"}
    }
    return [
        Holder(name, node.files, is_whole=False)
        for name, node in sorted(nodes.items())
        if node is not None and name != besides and presence.is_node_alive(name)
    ]


class Inquiry:
    """Finds out for one node's plans what a revision consists of."""

    def __init__(self, node: Node, tracker: Tracker, presence: Presence, token: str) -> None:
        self._node = node
        self._tracker = tracker
        self._presence = presence
        self._token = token

    async def manifest(self, wanted: Wanted) -> Manifest | None:
        """Return the manifest from this disk or from a holder; None where none gives it soon, or nobody needs it.

        It does not cross the log's bus: that of a large model is larger than a message may be.
        """
        store = self._node.store
        here = await asyncio.to_thread(manifest_here, store, wanted)
        if here is not None or not await asyncio.to_thread(store.names):
            return here  # where no model lies, there is nothing to gather
        stop = threading.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for holder in holders(self._tracker, self._presence, self._node.name, wanted.model, wanted.digest):
                    with suppress(StagecastError):
                        return await in_thread(
                            stop, fetch_manifest, holder, wanted.digest, self._token, stop, tls=self._node.tls
                        )
        return None
