"""The faults: what each breaks, for how long, and what is measured until all is well again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from chaos.load import Begun
from chaos.resumption import moved_again
from chaos.rig import Rig
from chaos.series import Outcome
from chaos.upstream import VERIFIED, upstream, verified_twice
from stagecast.cluster import NATS
from stagecast.rows import Row

STALL: Final = 14.0
"""Seconds for which a fault waits for `stalled` to be shown: the goal is 10."""
RESUME: Final = 30.0
_INSTALLATION: Final = 3 * VERIFIED
_INSTALLATION_RATE: Final = 8_000_000


@dataclass(frozen=True)
class Fault:
    """One kind of fault. ``cuts``: it needs a network that can be cut."""

    name: str
    text: str
    happen: Callable[[Rig], Awaitable[Outcome]]
    cuts: bool = False


async def nothing(rig: Rig) -> Outcome:
    """Let the load run undisturbed: the control."""
    await rig.pause(3.0, 4.0)
    return Outcome(agreement=await rig.agreed(rig.now))


async def replica_killed(rig: Rig) -> Outcome:
    name = rig.random.choice(rig.replicas)
    await rig.kill(name)
    await rig.pause(0.5, 4.0)
    return Outcome(agreement=await rig.agreed(await rig.start(name)))


async def replica_stopped(rig: Rig) -> Outcome:
    name = rig.random.choice(rig.replicas)
    rig.freeze(name)
    await rig.pause(0.5, 4.0)
    return Outcome(agreement=await rig.agreed(rig.thaw(name)))


async def replica_stopped_long(rig: Rig) -> Outcome:
    name = rig.random.choice(rig.replicas)
    rig.freeze(name)
    await rig.pause(9.0, 12.0)
    return Outcome(agreement=await rig.agreed(rig.thaw(name)))


async def replica_cut_off(rig: Rig) -> Outcome:
    name = rig.random.choice(rig.replicas)
    rig.cut(name, NATS)
    await rig.pause(1.0, 10.0)
    return Outcome(agreement=await rig.agreed(rig.heal(name)))


async def replica_restarted(rig: Rig) -> Outcome:
    name = rig.random.choice(rig.replicas)
    await rig.stop(name)
    return Outcome(agreement=await rig.agreed(await rig.start(name)))


async def replica_added(rig: Rig) -> Outcome:
    name = await rig.add_replica()
    agreement = await rig.agreed(rig.now)
    await rig.pause(1.0, 2.0)
    await rig.remove_replica(name)
    return Outcome(agreement=agreement)


async def worker_killed(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging)
    died = rig.now
    owner = await rig.kill(row.node_name)
    verified, before = rig.verified(row), rig.received(row.node_name)
    stalled = await rig.stalled(row, died, STALL)
    await rig.pause(0.0, 1.0)
    ready = await rig.start(row.node_name)
    agreement, takeover = await asyncio.gather(rig.agreed(ready), rig.taken_over(row, owner, ready, RESUME))
    return Outcome(
        stalled=stalled, takeover=takeover, agreement=agreement, should_stall=True, should_resume=True,
        verified_twice=await _again(rig, row, verified, before),
    )  # fmt: skip


async def worker_killed_briefly(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging)
    owner = await rig.kill(row.node_name)
    verified, before = rig.verified(row), rig.received(row.node_name)
    await rig.pause(0.0, 2.0)
    ready = await rig.start(row.node_name)
    agreement, takeover = await asyncio.gather(rig.agreed(ready), rig.taken_over(row, owner, ready, RESUME))
    again = await _again(rig, row, verified, before)
    return Outcome(takeover=takeover, agreement=agreement, should_resume=True, verified_twice=again)


async def _again(rig: Rig, row: Row, verified: int, before: int) -> int | None:
    """Wait for the end of a staging; return how many of the verified bytes its worker received again.

    None where that cannot be told: it has not ended, or there is no network of our own that counts.
    """
    if not await rig.until(lambda: rig.load.has_ended(row.job_id), RESUME) or rig.network is None:
        return None
    received = rig.received(row.node_name) - before
    again = moved_again(received, verified)
    rig.note("moved", id=row.id, verified=verified, received=received, again=again)
    return again


async def worker_restarted(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging)
    await rig.stop(row.node_name)
    ready = await rig.start(row.node_name)
    agreement, takeover = await asyncio.gather(rig.agreed(ready), rig.taken_over(row, row.owner, ready, RESUME))
    return Outcome(takeover=takeover, agreement=agreement, should_resume=True)


async def worker_stopped(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging)
    rig.freeze(row.node_name)
    await rig.pause(0.5, 4.0)
    thawed = rig.thaw(row.node_name)
    agreement, moved = await asyncio.gather(rig.agreed(thawed), rig.moved(row, thawed, RESUME))
    return Outcome(takeover=moved, agreement=agreement, should_resume=True)


async def worker_stopped_long(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging, most=0.5)
    died = rig.now
    rig.freeze(row.node_name)
    stalled = await rig.stalled(row, died, STALL)
    await rig.pause(0.0, 2.0)
    thawed = rig.thaw(row.node_name)
    agreement, moved = await asyncio.gather(rig.agreed(thawed), rig.moved(row, thawed, RESUME))
    return Outcome(stalled=stalled, takeover=moved, agreement=agreement, should_stall=True, should_resume=True)


async def worker_cut_off(rig: Rig) -> Outcome:
    row = await rig.transferring(_is_staging, most=0.5)
    cut = rig.now
    others = [name for name in (*rig.replicas, *rig.workers) if name != row.node_name]
    rig.cut(row.node_name, *others)
    await rig.pause(2.0, 12.0)
    healed = rig.heal(row.node_name)
    stalled = await rig.stalled(row, cut, 0.0)
    agreement, moved = await asyncio.gather(rig.agreed(healed), rig.moved(row, healed, RESUME))
    return Outcome(stalled=stalled, takeover=moved, agreement=agreement, should_resume=True)


async def nats_killed(rig: Rig) -> Outcome:
    await rig.kill(NATS)
    await rig.pause(0.2, 5.0)
    return Outcome(agreement=await rig.agreed(await rig.start(NATS)))


async def nats_stopped(rig: Rig) -> Outcome:
    rig.freeze(NATS)
    await rig.pause(0.5, 10.0)
    return Outcome(agreement=await rig.agreed(rig.thaw(NATS)))


async def nats_restarted(rig: Rig) -> Outcome:
    await rig.stop(NATS)
    return Outcome(agreement=await rig.agreed(await rig.start(NATS)))


async def nats_emptied(rig: Rig) -> Outcome:
    await rig.kill(NATS)
    rig.empty_nats()
    await rig.pause(0.2, 3.0)
    return Outcome(agreement=await rig.agreed(await rig.start(NATS)))


async def installer_killed(rig: Rig) -> Outcome:
    """Kill the replica that owns an installation: any other can take that over."""
    host = rig.network.address if rig.network else "127.0.0.1"
    name = f"installed-{rig.random.randrange(10**6):06}"
    with upstream({f"/{name}.bin": os.urandom(_INSTALLATION)}, host, _INSTALLATION_RATE) as server:
        asked = await rig.client.install(f"{server.url}/{name}.bin", name=name)
        begun = Begun(asked.job_id, asked.id, name, "", rig.now)
        rig.load.begun.append(begun)
        rig.note("begun", job=begun.job, id=begun.id, replica=rig.client.replica)
        ending = asyncio.create_task(rig.load.watch(begun))
        try:
            row = await rig.transferring(lambda row: row.job_id == begun.job, most=0.6)
            died, sent = rig.now, server.sent.total()
            already = len(server.requests)
            owner = await rig.kill(row.owner.partition("/")[0])
            stalled = await rig.stalled(row, died, STALL)
            takeover = await rig.taken_over(row, owner, died + (stalled or 0.0), RESUME)
            if stalled is None:
                # Taken over between two polls, before anybody was shown the stall.
                stalled, takeover = takeover, 0.0
            ready = await rig.start(owner.partition("/")[0])
            agreement = await rig.agreed(ready)
            await rig.until(ending.done, RESUME)
        finally:
            ending.cancel()
        return Outcome(
            stalled=stalled, takeover=takeover, agreement=agreement, should_stall=True, should_resume=True,
            twice=max(0, server.sent.total() - _INSTALLATION),
            verified_twice=verified_twice(sent, server.requests[already:]),
        )  # fmt: skip


async def several(rig: Rig) -> Outcome:
    """Let three things happen that overlap; all is well again some seconds later."""
    replicas, workers = list(rig.replicas), list(rig.workers)
    rig.random.shuffle(replicas)
    rig.random.shuffle(workers)
    kinds = ["nats", "replica", "replica", "worker", "worker"]
    chosen = rig.random.sample(kinds, 3)
    names = [NATS if kind == "nats" else (replicas if kind == "replica" else workers).pop() for kind in chosen]
    mishaps = [_mishap(rig, name) for name in names]
    return Outcome(agreement=await rig.agreed(max(await asyncio.gather(*mishaps))))


async def _mishap(rig: Rig, name: str) -> float:
    """Let one process have a mishap that begins soon and lasts for a while; return when it was over."""
    what = rig.random.choice(["kill", "freeze", "empty" if name == NATS else "cut"])
    began, lasts = rig.random.uniform(0.0, 3.0), rig.random.uniform(0.5, 9.0)
    await asyncio.sleep(began)
    if what == "freeze":
        rig.freeze(name)
        await asyncio.sleep(lasts)
        return rig.thaw(name)
    if what == "cut" and rig.network is not None:
        rig.cut(name, NATS)
        await asyncio.sleep(lasts)
        return rig.heal(name)
    await rig.kill(name)
    if what == "empty":
        rig.empty_nats()
    await asyncio.sleep(lasts)
    return await rig.start(name)


def _is_staging(row: Row) -> bool:
    return row.task_type == "staging"


FAULTS: Final = (
    Fault("none", "nothing (the control)", nothing),
    Fault("replica-kill", "a replica: SIGKILL, and back", replica_killed),
    Fault("replica-stop", "a replica: SIGSTOP, SIGCONT", replica_stopped),
    Fault("replica-stop-long", "a replica: SIGSTOP until its lease has run out", replica_stopped_long),
    Fault("replica-cut", "a replica cut off from NATS only", replica_cut_off, cuts=True),
    Fault("replica-restart", "a replica: restarted gently", replica_restarted),
    Fault("replica-add", "a replica added in the middle", replica_added),
    Fault("installer-kill", "an installation's owner: SIGKILL", installer_killed),
    Fault("worker-kill", "the worker that transfers: SIGKILL, back after the stall", worker_killed),
    Fault("worker-kill-brief", "the worker that transfers: SIGKILL, back at once", worker_killed_briefly),
    Fault("worker-restart", "the worker that transfers: restarted gently", worker_restarted),
    Fault("worker-stop", "the worker that transfers: SIGSTOP, SIGCONT", worker_stopped),
    Fault("worker-stop-long", "the worker that transfers: SIGSTOP until it is stalled", worker_stopped_long),
    Fault("worker-cut", "a worker cut off from the holders only", worker_cut_off, cuts=True),
    Fault("nats-kill", "nats-server: SIGKILL, back with its disk", nats_killed),
    Fault("nats-stop", "nats-server: SIGSTOP, SIGCONT", nats_stopped),
    Fault("nats-restart", "nats-server: restarted with its disk", nats_restarted),
    Fault("nats-empty", "nats-server: back with an empty disk", nats_emptied),
    Fault("several", "three of these at once, of any process", several),
)
