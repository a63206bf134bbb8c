"""The verifier: reads a node's copy of a model anew and has what is damaged repaired from the other holders.

It is a staging that takes nothing for granted: the same operation, so that the two never run beside each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from stagecast.errors import BadInput
from stagecast.node import Node
from stagecast.operations import is_verification
from stagecast.ownership import Ownership
from stagecast.quantities import format_size
from stagecast.remains import Remains
from stagecast.repair import Repair
from stagecast.room import promised
from stagecast.transfer import Holder, RateLimit, pull
from stagecast.transfer.pull import PATIENCE
from stagecast.verification import Findings, inspect
from stagecast.work import in_thread

_THEN: Final = f"it fails after {PATIENCE:.0f} s without a byte from any holder"

Holders = Callable[[str, str], Sequence[Holder]]
"""Who else holds a revision: called with the model and the digest."""


class Verifier:
    """Verifies for one node; ``holders`` is asked again and again while pieces are missing."""

    def __init__(self, node: Node, holders: Holders, *, token: str, limit: RateLimit | None = None) -> None:
        self._node = node
        self._holders = holders
        self._token = token
        self._limit = limit
        self.remains = Remains(node.store.partial_bytes, node.store.discard_partials)

    async def perform(self, ownership: Ownership) -> None:
        """Do what a replica without a worker's duties can do of a staging: verify."""
        if not is_verification(ownership.record):
            raise BadInput(f"{self._node.name} is no worker: it verifies what it has, and nothing is staged to it")
        async with self.remains.of(ownership):
            await self.verify(ownership)

    async def verify(self, ownership: Ownership) -> None:
        """Read all of a model, and repair it."""
        store, model, stop = self._node.store, ownership.record.model, ownership.stop
        expected = await asyncio.to_thread(store.expected, model)
        total = expected.size if expected else ownership.record.bytes_total
        await ownership.change(phase="verifying", bytes_done=0, bytes_present=0, bytes_total=total)
        check = partial(ownership.check, total=total)
        findings = await in_thread(stop, inspect, store, model, checked=check, found=ownership.find, stop=stop)
        if findings.files:
            await self._repair(ownership, findings)
        await self._node.conclude(ownership, findings.manifest)
        await ownership.end("succeeded", note=_sentence(findings) if expected else "read in as it is")

    async def _repair(self, ownership: Ownership, findings: Findings) -> None:
        """Get the damaged pieces, and put each damaged file together beside the old one before it takes its place."""
        manifest, store = findings.manifest, self._node.store
        copy = sum(manifest.files[number].size for number in findings.files)
        with ExitStack() as stack:
            repair = await in_thread(ownership.stop, stack.enter_context, Repair(store, findings))
            written = sum(repair.written(piece) for piece in repair.missing())
            present = repair.verified_bytes + written
            bad = sum(piece.length for piece in findings.pieces)
            here = written + bad - sum(piece.length for piece in repair.missing())
            room = await promised(stack, ownership, self._node, copy - here, present)

            def advance(count: int) -> None:
                ownership.advance(count)
                room.landed(count)

            def check_copy(count: int) -> None:
                ownership.check(count, total=copy)
                room.landed(count)

            await ownership.change(
                phase="transferring", bytes_total=manifest.size, bytes_done=present, bytes_present=present,
                total_files=len(manifest.files),
            )  # fmt: skip
            await in_thread(
                ownership.stop, pull, manifest, repair, lambda: self._holders(manifest.model, manifest.digest),
                token=self._token, tls=self._node.tls, limit=self._limit, advance=advance,
                checked=partial(ownership.check, total=written), waiting=partial(ownership.wait, then=_THEN),
                entered=lambda index: ownership.enter(index + 1, manifest.files[index].path),
                completed=lambda index: ownership.complete(index + 1, manifest.files[index].path),
                stop=ownership.stop,
            )  # fmt: skip
            await ownership.change(phase="verifying")
            await in_thread(ownership.stop, repair.mend, ownership.stop, check_copy)


def _sentence(findings: Findings) -> str:
    if not findings.files:
        return "undamaged"
    paths = [findings.manifest.files[number].path for number in findings.files]
    files = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more files" if len(paths) > 3 else "")
    count, size = len(findings.pieces), format_size(sum(piece.length for piece in findings.pieces))
    return f"{count} piece{'' if count == 1 else 's'} repaired ({size}) in {files}"
