"""Run one schedule to its quiet end, and find the smallest part of a failing one that still fails."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from stagecast import horizon, leases
from stagecast.bus import consumer
from stagecast.bus.nats import REQUEST_TIMEOUT
from tests.simulation.browser import Browser
from tests.simulation.cluster import Cluster
from tests.simulation.deadlines import Deadlines
from tests.simulation.invariants import Ledger
from tests.simulation.life import Node
from tests.simulation.loop import Violation
from tests.simulation.schedule import OPERATIONS, Happening, Schedule, drawn
from tests.simulation.words import brief

TICK: Final = 0.25
POLL: Final = 0.4
CONVERGED_WITHIN: Final = 60.0


@dataclass
class Outcome:
    """What a run came to."""

    schedule: Schedule
    violation: str = ""
    steps: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    trace: str = ""
    entries: list[str] = field(default_factory=list)


class Run:
    """A schedule on its way."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.ledger = Ledger()
        self.deadlines = Deadlines(self.ledger)
        self.noise = replace(schedule.noise)
        self.cluster = Cluster(
            schedule.seed, self.ledger, server_skew=schedule.skews["server"], noise=self.noise, pace=schedule.pace
        )
        self.faults: Counter[str] = Counter()
        self._is_quiet = False
        self._turn = self._opened = 0
        self.browsers: list[Browser] = []

    def go(self) -> Outcome:
        """Run to the quiet end, or to the first violation."""
        loop, schedule = self.cluster.loop, self.schedule
        outcome = Outcome(schedule)
        before = leases.PATIENCE, consumer.BUSY
        leases.PATIENCE, consumer.BUSY = schedule.patience, schedule.busy  # type: ignore[misc]
        ages = horizon.AGE, horizon.STEP
        horizon.AGE, horizon.STEP = schedule.age, schedule.age / 4  # type: ignore[misc]
        try:
            self._begin()
            loop.run(lambda: False, schedule.until)
            self._mend()
            if not loop.run(lambda: not self._due(), schedule.until + CONVERGED_WITHIN):
                self.ledger.fail("the end", self.deadlines.unsettled())
            self.deadlines.finish()
            if loop.failures:
                self.ledger.fail("errors", "; ".join(loop.failures[:3]))
        except Violation as violation:
            outcome.violation = str(violation)
        finally:
            leases.PATIENCE, consumer.BUSY = before  # type: ignore[misc]
            horizon.AGE, horizon.STEP = ages  # type: ignore[misc]
            self._tell(outcome)
            loop.destroy()
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        loop = self.cluster.loop
        outcome.steps, outcome.seconds = loop.steps, loop.time()
        outcome.faults = self.faults + Counter(self.cluster.server.faults)
        outcome.checks, outcome.answers = self.ledger.checks, self.ledger.answers
        digest = hashlib.blake2s(f"{loop.steps} {loop.time()}".encode())
        for at, entry, _ in self.ledger.entries:
            digest.update(f"{at} {entry.subject} {entry.sequence}".encode() + entry.payload)
        outcome.trace = digest.hexdigest()[:16]
        outcome.entries = [
            f"{at:9.4f} s  {entry.sequence:4d}  {brief(record) if record else entry.subject}"
            for at, entry, record in self.ledger.entries
        ]

    def _begin(self) -> None:
        schedule, cluster = self.schedule, self.cluster
        cluster.models, cluster.broken = schedule.models, set(schedule.broken)
        cluster.is_forgetful = schedule.age < schedule.until
        for kind, count in (("replica", schedule.replicas), ("worker", schedule.workers)):
            for number in range(1, count + 1):
                name = f"{kind[0]}{number}"
                cluster.add(name, kind, schedule.skews[name]).start()
        self.browsers = [self._open_browser() for _ in range(schedule.clients)]
        for happening in schedule.happenings:
            cluster.loop.world.post_at(happening.at, self._happen, happening)
        cluster.loop.world.post_at(TICK, self._tick)

    def _tick(self) -> None:
        self.deadlines.tick()
        self._later(TICK, self._tick)

    def _due(self) -> str:
        return self.deadlines.unsettled()

    def _later(self, delay: float, work: object, *arguments: object) -> None:
        self.cluster.loop.world.post_at(self.cluster.loop.time() + delay, work, *arguments)  # type: ignore[arg-type]

    # What happens.

    def _happen(self, happening: Happening) -> None:
        if happening.what in OPERATIONS:
            self._ask(happening)
        elif happening.steps and (life := self.cluster.nodes[happening.who].life) is not None and life.is_alive:
            life.process.trigger = lambda: self._break(happening)
            life.process.countdown = happening.steps
        else:
            self._break(happening)

    def _ask(self, happening: Happening) -> None:
        path = f"/api/{happening.what}/{happening.model or happening.who}"
        if happening.what == "stage":
            path += f"/{happening.who}"
        self._turn += 1
        browser = self.browsers[self._turn % len(self.browsers)]
        browser.process.spawn(browser.do(path))

    def _break(self, happening: Happening) -> None:
        if self._is_quiet:
            return
        self.faults[happening.what] += 1
        node = self.cluster.nodes.get(happening.who)
        if node is not None:
            self._break_node(node, happening)
        elif happening.what.endswith("bus"):
            self._break_bus(happening)
        elif happening.what == "join":
            name = f"new{len(self.cluster.nodes)}"
            self.cluster.add(name, "replica", self.schedule.skews["new"]).start()
        elif happening.what == "close browser":
            self._close_browser()
        else:
            self._break_network(happening)

    def _break_node(self, node: Node, happening: Happening) -> None:
        what, lasting = happening.what, happening.lasting
        if what in {"crash", "stop"}:
            node.crash() if what == "crash" else node.stop()
            self._later(lasting, self._start, node)
        elif what == "sleep":
            node.pause()
            self._later(lasting, node.wake)
        elif what == "cut" and node.life is not None:
            node.life.client.cut()
            self._later(lasting, node.life.client.heal)

    def _start(self, node: Node) -> None:
        if node.name == self.schedule.away:
            return
        if node.life is not None and node.life.is_alive and node.life.main.cancelling():
            self._later(0.2, self._start, node)
        else:
            node.start()

    def _close_browser(self) -> None:
        """End a client in the middle of whatever it asks for, and open another."""
        number = self.cluster.loop.random.randrange(len(self.browsers))
        self.browsers[number].process.kill()
        self.browsers[number] = self._open_browser()

    def _open_browser(self) -> Browser:
        self._opened += 1
        browser = Browser(self.cluster, f"client {self._opened}")
        browser.process.spawn(browser.watch(POLL))
        return browser

    def _break_bus(self, happening: Happening) -> None:
        server = self.cluster.server
        if happening.what == "hang bus":
            server.process.pause()
            for life in self.cluster.lives():
                life.client.give_up_on_silence()
            self._later(happening.lasting, self._wake_bus)
        elif server.is_up:
            server.kill()
            self._later(happening.lasting, self._start_bus, happening.what == "empty bus")

    def _wake_bus(self) -> None:
        if self.cluster.server.process.is_paused:
            self.cluster.server_since = self.cluster.loop.time()
            self.cluster.server.process.wake()

    def _start_bus(self, empty: bool) -> None:
        server = self.cluster.server
        if not server.is_up:
            if empty:
                self.ledger.emptied()
            server.start(empty=empty)
            self.cluster.server_since = self.cluster.loop.time()

    def _break_network(self, happening: Happening) -> None:
        name = {"drop": "drop_delivery", "repeat": "repeat_delivery", "lose answers": "drop_answer"}[happening.what]
        setattr(self.noise, name, 0.15)
        self._later(happening.lasting, self._calm, name)

    def _calm(self, name: str) -> None:
        setattr(self.noise, name, 0.0)
        self.cluster.calm_since = self.cluster.loop.time() + REQUEST_TIMEOUT

    def _mend(self) -> None:
        """Let everything heal."""
        self._is_quiet = True
        self.cluster.calm_since = self.cluster.loop.time() + REQUEST_TIMEOUT
        for each in ("drop_delivery", "repeat_delivery", "drop_answer", "slow", "lag"):
            setattr(self.noise, each, 0.0)
        self._wake_bus()
        self._start_bus(False)
        for node in self.cluster.nodes.values():
            node.wake()
            if node.life is not None:
                node.life.client.heal()
            self._start(node)


def run(schedule: Schedule) -> Outcome:
    """Run a schedule."""
    return Run(schedule).go()


def run_seed(seed: int, theme: str = "") -> Outcome:
    """Run the schedule of a seed."""
    return run(drawn(seed, theme))


def shrunk(schedule: Schedule) -> Outcome:
    """Return how the smallest part of a failing schedule fails, found by leaving out one happening after the other."""
    outcome = run(schedule)
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for happening in outcome.schedule.happenings[::-1]:
            tried = run(outcome.schedule.without(happening))
            if tried.violation:
                outcome, is_smaller = tried, True
                break
    return outcome


def report(outcome: Outcome, entries: int = 25) -> str:
    """Return a failing run as people read it."""
    return "\n".join([str(outcome.schedule), f"broken: {outcome.violation}", *outcome.entries[-entries:]])
