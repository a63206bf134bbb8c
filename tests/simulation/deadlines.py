"""What must have happened by now, and what must have come of everything at the quiet end (laws L7 and L8)."""

from __future__ import annotations

from collections import Counter
from typing import Final

from stagecast import subjects
from stagecast.bus.nats import _identity
from stagecast.messages import Record
from stagecast.revision import Revision
from tests.simulation.invariants import Ledger
from tests.simulation.life import Life
from tests.simulation.stream import Stream
from tests.simulation.words import brief, is_ended

STALLED_WITHIN: Final = 10.0
TAKEN_WITHIN: Final = 10.0
AGREED_WITHIN: Final = 2.0
DEGRADED_WITHIN: Final = 2.5


class Deadlines:
    """Looks at the cluster now and then, by what its ledger knows."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._tails: list[tuple[float, str, int]] = []
        self._since: dict[str, float] = {}

    def tick(self) -> None:
        """Look at what must have happened by now."""
        now, server = self.ledger.cluster.loop.time(), self.ledger.cluster.server
        lives = self.ledger.cluster.lives()
        stream = server.streams.get("STAGECAST") if server.is_up else None
        if stream is not None:
            self._tails.append((now, _identity(stream.info()), stream.last_sequence))
        for life in lives:
            self._check_degraded(life, now)
            if life.well_since is not None and stream is not None:
                self._check_agreement(life, now, life.well_since)
        judges = [life.well_since for life in lives if life.replica is not None and life.well_since is not None]
        if judges and stream is not None:
            self._check_leases(now, min(judges))

    def _check_degraded(self, life: Life, now: float) -> None:
        tracker = life.tracker
        if tracker is None or not tracker.caught_up.is_set() or life.process.is_paused:
            return
        deaf = not life.client.is_connected or not self.ledger.cluster.server.is_up
        since = self._since.setdefault(life.id, now) if deaf else self._since.pop(life.id, None)
        if deaf and since is not None:
            self.ledger.checks["L8"] += 1
            if now - max(since, life.awake_since) > DEGRADED_WITHIN and not tracker.is_degraded:
                self.ledger.fail("L8", f"{life.id} hears nothing for {now - since:.1f} s and does not say degraded")

    def _check_agreement(self, life: Life, now: float, well: float) -> None:
        tracker = life.tracker
        past, noise = now - AGREED_WITHIN, self.ledger.cluster.server.noise
        if (
            tracker is None
            or max(well, self.ledger.cluster.calm_since) > past
            or noise.drop_answer
            or noise.drop_delivery
        ):
            return
        found = [tail for tail in self._tails if tail[0] <= past]
        if not found or found[-1][0] < well or self._tails[-1][1] != found[-1][1]:
            return
        self.ledger.checks["L8"] += 1
        _, identity, sequence = found[-1]
        at = tracker.revision
        if tracker.is_degraded or at.identity != identity or at.sequence < sequence:
            said = "degraded " if tracker.is_degraded else ""
            self.ledger.fail(
                "L8", f"{life.id} is {said}at {at}; the log stood at {identity}-{sequence} for {AGREED_WITHIN} s"
            )

    def _check_leases(self, now: float, judged_since: float) -> None:
        cluster = self.ledger.cluster
        living = {life.id: life for life in cluster.lives()}
        for id_, slot in self.ledger.ideal.slots.items():
            record = slot.record
            if is_ended(record) or not record.owner or record.owner in living or record.state == "paused":
                continue
            self.ledger.checks["L7"] += 1
            since = max(self.ledger.written[id_], judged_since, self._dead_since(record.owner))
            if record.state != "stalled":
                if now - since > STALLED_WITHIN:
                    self.ledger.fail(
                        "L7", f"{brief(record)} is not stalled {now - since:.1f} s after its owner could be missed"
                    )
                continue
            if record.kind == "installation":
                if now - max(self.ledger.written[id_], judged_since) > TAKEN_WITHIN:
                    self.ledger.fail("L7", f"nobody took {brief(record)} over")
                continue
            life = cluster.nodes[record.node].life
            well = life.well_since if life is not None else None
            if well is not None and now - max(well, self.ledger.written[id_]) > TAKEN_WITHIN:
                self.ledger.fail("L7", f"{record.node} is back and does not go on with {brief(record)}")

    def _dead_since(self, process: str) -> float:
        # A sign of life that a cut held back is heard once that is mended, as if it was given then: nobody can tell.
        cluster = self.ledger.cluster
        died = cluster.deaths.get(process, 0.0)
        return max(died, cluster.mourned[process].healed_since) if died else 0.0

    # The end.

    def finish(self) -> None:
        """Everything has ended as `unsettled` demands: count what ended though whoever began it was gone (L9)."""
        living = {life.id for life in self.ledger.cluster.lives()}
        for replica, browser in self.ledger.began_by.values():
            self.ledger.checks["L9"] += (replica not in living) + browser.process.is_dead

    def unsettled(self) -> str:
        """Return what is still to come before everything has converged; nothing once it has."""
        cluster = self.ledger.cluster
        stream = cluster.server.streams.get("STAGECAST")
        if stream is None:
            return "there is no log"
        at = Revision(_identity(stream.info()), stream.last_sequence)
        found = [f"{brief(record)} goes on" for record in self.ledger.ideal.live() if record.state != "paused"]
        found += [
            f"{id_} was accepted and is not in the log"
            for id_ in self.ledger.jobs.keys() - self.ledger.ideal.slots.keys()
            if id_ not in self.ledger.forgotten or self.ledger.jobs[id_] not in self.ledger.ended_jobs
        ]
        found += [
            f"{brief(risk.record)} was known by {sorted(risk.keepers)} and is not in the log that came back"
            for risk in self.ledger.risks.values()
        ]
        found += self._not_forgotten(stream)
        return next(iter(found), "") or next(filter(None, (self._behind(life, at) for life in cluster.lives())), "")

    def _not_forgotten(self, stream: Stream) -> list[str]:
        """Return what ended long ago and is in the log still, or in the picture of an observer of all of it."""
        slots = self.ledger.ideal.slots
        found = [
            f"{subject} is still in the log, and nobody knows it"
            for subject in stream.messages.keys() - {subjects.operation(slot.record) for slot in slots.values()}
            if subject.startswith(("staging.", "gallery."))
        ]
        if self.ledger.cluster.is_forgetful:
            found += [
                f"{brief(slot.record)} is not forgotten" for slot in slots.values() if _is_forgettable(slot.record)
            ]
        return found

    def _behind(self, life: Life, at: Revision) -> str:
        if not life.is_ready or life.tracker is None:
            return f"{life.id} is not ready"
        if life.tracker.revision != at or life.tracker.is_degraded:
            return f"{life.id} is at {life.tracker.revision}, the log at {at}"
        return self._missing_ends(life)

    def _missing_ends(self, life: Life) -> str:
        if life.history is None:
            return ""
        known = Counter((record.job, record.attempt) for record in life.history.page(limit=1000).records)
        for slot in self.ledger.ideal.slots.values():
            if is_ended(slot.record) and known[slot.record.job, slot.record.attempt] != 1:
                return f"{life.id} has no history of {brief(slot.record)}"
        return ""


def _is_forgettable(record: Record) -> bool:
    """Tell whether nobody has to know of an operation any more, nor of what it left on a disk."""
    return record.state == "succeeded"
