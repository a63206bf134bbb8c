"""N workers that receive the same model, simulated: the decisions are the production code, the network is a formula.

Who asks whom for what is decided by `Assignments`, and who is told to look elsewhere by `Sends`, just as in a pull.
Only time and bytes are made up: a flow gets the smaller one of its sender's and its receiver's equal shares; what slow
receivers leave of a sender's link its other flows take, but not the other way round, so it is a little less than TCP
finds. There is no latency, and nothing is lost. A
machine has as many connections as a `FileServer`, gives up idle ones as that does, and refuses the rest.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from stagecast.pieces import Holder, Piece
from stagecast.transfer.active import Assignment
from stagecast.transfer.assignments import Assignments
from stagecast.transfer.ledger import REFRESH, SHARING, TICK
from stagecast.transfer.scout import LONGEST, LOOK
from stagecast.transfer.sends import Declined, Sending, Sends
from stagecast.transfer.serve import CONNECTIONS
from stagecast.transfer.stream import CONNECTIONS as KEPT

ORIGIN: Final = "origin"
TOGETHER: Final = 0.1
"""Seconds within which the workers begin."""


class Plan(NamedTuple):
    """What is simulated: ``rate`` in bytes per second, of each link, in each direction; ``size`` in bytes of a piece.

    The first ``slow`` workers have a tenth of it. The last ``late`` ones join when one alone would be half done, and
    the first ``dying`` ones die then.
    """

    workers: int
    pieces: int
    size: int = 16 << 20
    rate: float = 50e6
    slow: int = 0
    late: int = 0
    dying: int = 0
    seed: int = 1

    @property
    def alone(self) -> float:
        """Seconds that one worker alone takes at least."""
        return self.pieces * self.size / self.rate


class Outcome(NamedTuple):
    """Seconds that each worker took which did not die, slow ones first; and the bytes that each tier sent.

    ``connections`` is how many the origin had at most, ``refused`` how often anybody had none left.
    """

    seconds: list[float]
    origin: int
    workers: int
    connections: int
    refused: int


class _Line(NamedTuple):
    """A connection of a puller's stream, or of its scout."""

    puller: _Machine
    stream: int


_SCOUT: Final = -1


@dataclass(eq=False)
class _Machine:
    name: str
    rate: float
    sends: Sends
    have: int = 0
    began: float = 0.0
    ended: float = -1.0
    is_up: bool = True
    is_waiting: bool = False
    out: dict[_Flow, None] = field(default_factory=dict)
    come: dict[_Flow, None] = field(default_factory=dict)
    assignments: Assignments | None = None
    connections: dict[_Line, None] = field(default_factory=dict)
    """Those that others have to it, the one that was idle the longest first."""
    kept: dict[int, dict[_Machine, None]] = field(default_factory=dict)
    """To whom each of its streams has one."""
    rests: dict[str, tuple[float, float]] = field(default_factory=dict)
    most: int = 0

    def share(self) -> float:
        """Return how much of its link each flow has that its receiver does not hold back."""
        equal = self.rate / len(self.out)
        held = [part for flow in self.out if (part := flow.receiver.rate / len(flow.receiver.come)) < equal]
        return (self.rate - sum(held)) / (len(self.out) - len(held)) if len(held) < len(self.out) else self.rate

    @property
    def is_whole(self) -> bool:
        return self.name == ORIGIN or self.ended >= 0


@dataclass(eq=False)
class _Flow:
    sender: _Machine
    receiver: _Machine
    assignment: Assignment
    sending: Sending
    stream: int
    start: float
    position: float
    at: float
    rate: float = 0.0
    version: int = 0


class Simulation:
    """`run` it once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._now = 0.0
        self._chance = random.Random(plan.seed)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._refused = 0
        self._pieces = [Piece(0, index, index * plan.size, plan.size) for index in range(plan.pieces)]
        self._parts: dict[tuple[str, int], float] = {}
        self._machines = {ORIGIN: self._machine(ORIGIN, plan.rate)}
        self._machines[ORIGIN].have = (1 << plan.pieces) - 1
        for number in range(plan.workers):
            name = f"worker-{number + 1}"
            self._machines[name] = self._machine(name, plan.rate / 10 if number < plan.slow else plan.rate)
        self._workers = list(self._machines.values())[1:]

    def run(self) -> Outcome:
        """Return how it went. Raises `RuntimeError` where it would never end."""
        plan = self._plan
        for number, worker in enumerate(self._workers):
            is_late = number >= plan.workers - plan.late
            self._at(self._chance.random() * TOGETHER + plan.alone / 2 * is_late, self._begins, worker)
        for worker in self._workers[: plan.dying]:
            self._at(plan.alone / 2, self._dies, worker)
        while any(worker.is_up and worker.ended < 0 for worker in self._workers):
            if not self._agenda or self._now > 100 * plan.alone + 100:
                raise RuntimeError("the simulated workers wait for ever")
            self._now, _, happening = heapq.heappop(self._agenda)
            happening()
        sent = [machine.sends.bytes_sent for machine in self._machines.values()]
        seconds = [each.ended - each.began for each in self._workers if each.is_up]
        return Outcome(seconds, sent[0], sum(sent[1:]), self._machines[ORIGIN].most, self._refused)

    def _machine(self, name: str, rate: float) -> _Machine:
        return _Machine(name, rate, Sends(lambda: self._now))

    def _at(self, seconds: float, what: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (self._now + seconds, self._count, lambda: what(*arguments)))

    def _begins(self, worker: _Machine) -> None:
        draw = random.Random(self._chance.random()).random
        worker.began = self._now
        worker.assignments = Assignments(self._pieces, self._pieces, (), self._now, draw)
        self._knows(worker)
        self._at(LOOK * self._chance.random(), self._looks, worker)

    def _dies(self, worker: _Machine) -> None:
        worker.is_up = False
        self._leaves(worker)
        for flow in [*worker.out, *worker.come]:
            self._ends(flow)
            if flow.sender is worker:
                assert flow.receiver.assignments is not None
                flow.receiver.assignments.failed(flow.assignment, "died", self._now)

    def _leaves(self, worker: _Machine) -> None:
        for stream, kept in worker.kept.items():
            for holder in list(kept):
                self._hangs_up(worker, stream, holder)

    def _knows(self, worker: _Machine) -> None:
        """Learn who there is, as `Ledger.supervise` does."""
        if self._is_at_it(worker):
            assert worker.assignments is not None
            others = [each for each in self._machines.values() if each is not worker and each.is_up]
            known = [each for each in others if each.is_whole or each.assignments is not None]
            worker.assignments.know([Holder(each.name, "", each.is_whole) for each in known], self._now)
            self._fills(worker)
            self._at(REFRESH, self._knows, worker)

    def _looks(self, worker: _Machine) -> None:
        """Learn who has what, as `Scout` does."""
        if self._is_at_it(worker):
            assert worker.assignments is not None
            holders = worker.assignments.holders if worker.assignments.is_shared else []
            machines = [self._machines[holder.name] for holder in holders]
            for known in [each for each in worker.kept.get(_SCOUT, {}) if each not in machines]:
                self._hangs_up(worker, _SCOUT, known)
            for machine in machines:
                if worker.rests.get(machine.name, (0.0, 0.0))[0] <= self._now:
                    self._learns(worker, machine, worker.assignments)
            self._fills(worker)
            self._at(LOOK, self._looks, worker)

    def _learns(self, worker: _Machine, machine: _Machine, assignments: Assignments) -> None:
        if machine.is_up and self._connects(worker, _SCOUT, machine):
            begun = {start // self._plan.size for start, _ in machine.sends.lately("")}
            sent = sum(1 << number for number in begun)
            assignments.learn(machine.name, machine.have, sent, self._now)
            worker.rests.pop(machine.name, None)
        else:
            length = min(LONGEST, 2 * worker.rests.get(machine.name, (0.0, LOOK / 2))[1])
            worker.rests[machine.name] = self._now + length, length

    def _connects(self, puller: _Machine, stream: int, holder: _Machine) -> bool:
        """Use a connection, a new one where there is none; tell whether the holder has room for it, as `FileServer`."""
        line, kept = _Line(puller, stream), puller.kept.setdefault(stream, {})
        if line not in holder.connections and len(holder.connections) >= CONNECTIONS:
            busy = {_Line(flow.receiver, flow.stream) for flow in holder.out}
            idle = next((each for each in holder.connections if each not in busy), None)
            if idle is None:
                self._refused += 1
                return False
            self._hangs_up(idle.puller, idle.stream, holder)
        if holder not in kept and stream != _SCOUT and len(kept) >= KEPT:
            self._hangs_up(puller, stream, next(iter(kept)))
        holder.connections.pop(line, None)
        holder.connections[line] = kept[holder] = None
        holder.most = max(holder.most, len(holder.connections))
        return True

    def _hangs_up(self, puller: _Machine, stream: int, holder: _Machine) -> None:
        del puller.kept[stream][holder], holder.connections[_Line(puller, stream)]

    def _is_at_it(self, worker: _Machine) -> bool:
        return worker.is_up and worker.assignments is not None and worker.ended < 0

    def _wakes(self, worker: _Machine) -> None:
        worker.is_waiting = False
        self._fills(worker)

    def _fills(self, worker: _Machine) -> None:
        """Give each stream that has nothing to do something, as `Ledger.take` does."""
        assignments = worker.assignments
        while self._is_at_it(worker) and assignments is not None and len(worker.come) < SHARING:
            assignment = assignments.next(self._now)
            if assignment is None:
                self._reconsiders(worker, assignments)
                if not worker.is_waiting:
                    worker.is_waiting = True
                    self._at(TICK, self._wakes, worker)
                return
            self._asks(worker, assignments, assignment)

    def _asks(self, worker: _Machine, assignments: Assignments, assignment: Assignment) -> None:
        assert assignment.holder is not None
        piece, holder = assignment.piece, self._machines[assignment.holder.name]
        if not holder.is_up:
            assignments.failed(assignment, "dead", self._now)
            return
        stream = min(set(range(SHARING)) - {flow.stream for flow in worker.come})
        if not self._connects(worker, stream, holder):
            assignments.failed(assignment, "full", self._now)
            return
        for flow in holder.out:
            self._moves(flow)
        begin = self._parts.get((worker.name, piece.index), 0.0)
        try:
            sending = holder.sends.begin("", piece.offset, piece.offset + piece.length, assignment.wish)
        except Declined as no:
            assignments.busy(assignment, no.message, self._now, is_given=no.code == "given")
            return
        flow = _Flow(holder, worker, assignment, sending, stream, begin, begin, self._now)
        holder.out[flow] = worker.come[flow] = None
        assignments.reached(piece, max(1, int(begin)), self._now)
        self._shares(holder, worker)

    def _reconsiders(self, worker: _Machine, assignments: Assignments) -> None:
        for flow in worker.come:
            self._moves(flow)
        assignments.reconsider(self._now)
        for flow in list(worker.come):
            if assignments.is_unwanted(flow.assignment.piece):
                self._parts[worker.name, flow.assignment.piece.index] = flow.position
                self._ends(flow)
                assignments.given_back(flow.assignment)

    def _moves(self, flow: _Flow) -> None:
        """Bring a flow up to now."""
        before = flow.position
        flow.position = min(flow.assignment.piece.length, before + flow.rate * (self._now - flow.at))
        flow.at = self._now
        flow.sender.sends.count(flow.sending, int(flow.position) - int(before))
        assert flow.receiver.assignments is not None
        flow.receiver.assignments.reached(flow.assignment.piece, max(1, int(flow.position)), self._now)

    def _shares(self, sender: _Machine, receiver: _Machine) -> None:
        """Share out the links of both anew."""
        for flow in {**sender.out, **receiver.come}:
            rate = min(flow.sender.share(), flow.receiver.rate / len(flow.receiver.come))
            if rate != flow.rate:
                self._moves(flow)
                flow.rate, flow.version = rate, flow.version + 1
                left = flow.assignment.piece.length - flow.position
                self._at(left / rate, self._arrives, flow, flow.version)

    def _arrives(self, flow: _Flow, version: int) -> None:
        if version != flow.version:
            return
        worker, piece = flow.receiver, flow.assignment.piece
        flow.at, flow.rate = self._now, 0.0
        flow.sender.sends.count(flow.sending, piece.length - int(flow.position))
        assert worker.assignments is not None
        worker.assignments.reached(piece, piece.length, self._now)
        worker.assignments.done(flow.assignment, self._now)
        worker.have |= 1 << piece.index
        self._ends(flow)
        if worker.assignments.is_complete:
            worker.ended = self._now
            self._leaves(worker)
        else:
            self._fills(worker)

    def _ends(self, flow: _Flow) -> None:
        flow.version += 1
        del flow.sender.out[flow], flow.receiver.come[flow]
        flow.sender.sends.end(flow.sending)
        self._shares(flow.sender, flow.receiver)
