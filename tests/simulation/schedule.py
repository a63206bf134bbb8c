"""Schedules: what happens in one run, as a value made from a seed. The same value always runs the same way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

from stagecast.bus import consumer
from tests.simulation.network import Noise

OPERATIONS: Final = ("stage", "install", "cancel", "pause", "resume", "retry", "dismiss")
VERBS: Final = (
    (), (), (), ("cancel",), ("cancel", "retry"), ("pause", "resume"), ("pause", "cancel"), ("pause",), ("retry",),
    ("dismiss",), ("cancel", "cancel"), ("pause", "resume", "cancel"),
)  # fmt: skip
FAULTS: Final = (
    "crash", "crash", "crash", "stop", "sleep", "cut", "kill bus", "hang bus", "empty bus", "drop", "repeat",
    "lose answers", "join", "close browser",
)  # fmt: skip


@dataclass(frozen=True)
class Happening:
    """One thing that happens: somebody asks for something, or something breaks and, ``lasting`` seconds later, mends.

    ``steps``: it comes only after so many more steps of its victim, so that it lands between any two of them.
    """

    at: float
    what: str
    who: str = ""
    model: str = ""
    lasting: float = 0.0
    steps: int = 0

    def __str__(self) -> str:
        """Return it as a line."""
        words = [f"{self.at:7.3f} s  {self.what}", self.model, self.who]
        if self.steps:
            words.append(f"after {self.steps} more steps of it")
        if self.lasting:
            words.append(f"for {self.lasting:.3f} s")
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Schedule:
    """One run."""

    seed: int
    replicas: int
    workers: int
    models: dict[str, int]
    broken: frozenset[str]
    skews: dict[str, float]
    noise: Noise
    pace: float
    until: float
    happenings: tuple[Happening, ...]
    away: str = ""
    """A node that does not come back before everything has ended."""
    patience: float = 120.0
    clients: int = 1
    busy: float = consumer.BUSY
    """Seconds between two messages, on average, below which followers take the log in gulps and rest in between."""
    age: float = 600.0
    """Seconds after its end at which an operation is forgotten."""

    def without(self, happening: Happening) -> Schedule:
        """Return the same run with one happening less."""
        return replace(self, happenings=tuple(each for each in self.happenings if each is not happening))

    def __str__(self) -> str:
        """Return it as people read it."""
        head = (
            f"seed {self.seed}: {self.replicas} replicas, {self.workers} workers, {self.clients} clients, models "
            f"{self.models}, sources gone {sorted(self.broken)}, pace {self.pace:.3f} s, quiet from {self.until:.1f} s"
            + (f", {self.away} stays away" if self.away else "")
        )
        return "\n".join([head, *(f"  {each}" for each in self.happenings)])


@dataclass
class _Draft:
    """A schedule while it is being drawn."""

    chance: random.Random
    replicas: list[str]
    workers: list[str]
    models: list[str]
    until: float
    happenings: list[Happening] = field(default_factory=list)

    def moment(self, share: float = 1.0) -> float:
        return round(self.chance.uniform(0.0, self.until * share), 3)


THEMES: Final = {"storm": 68, "long storm": 12, "sleeper": 7, "apart": 4, "mourning": 5, "ever new": 4, "mislaid": 2}
"""What a schedule is about, and how many of a hundred are."""


def drawn(seed: int, theme: str = "") -> Schedule:
    """Return the schedule of a seed: mostly a storm of anything, now and then what a storm would seldom bring about."""
    chance = random.Random(f"schedule {seed}")
    replicas = [f"r{number}" for number in range(1, chance.choice((2, 2, 2, 3)) + 1)]
    workers = [f"w{number}" for number in range(1, chance.choice((1, 1, 1, 2)) + 1)]
    models = {f"m{number}": chance.randint(2, 4) for number in range(1, chance.choice((1, 1, 2)) + 1)}
    theme = theme or chance.choices(list(THEMES), list(THEMES.values()))[0]
    until = chance.uniform(3, 7) if theme == "storm" else chance.uniform(12, 20)
    draft = _Draft(chance, replicas, workers, list(models), until, chance.uniform(0.05, 0.4))
    if theme == "sleeper":
        _draw_sleeper(draft)
    elif theme == "apart":
        _draw_apart(draft)
    elif theme == "mourning":
        _draw_mourning(draft)
    elif theme == "mislaid":
        _draw_mislaid(draft)
    elif theme == "ever new":
        models = _draw_ever_new(draft)
    else:
        _draw_operations(draft)
        _draw_faults(draft, is_long=theme != "storm")
    return Schedule(
        seed=seed,
        replicas=len(replicas),
        workers=len(workers),
        models=models,
        broken=frozenset(name for name in models if theme != "apart" and chance.random() < 0.1),
        skews={name: chance.uniform(-5, 5) * 3600 for name in [*replicas, *workers, "new", "server"]},
        noise=Noise(slow=chance.choice((0.0, 0.02, 0.1)), lag=chance.choice((0.0, 0.05, 0.3))),
        pace=draft.pace,
        until=until,
        happenings=tuple(sorted(draft.happenings, key=lambda each: each.at)),
        away=draft.away,
        patience=15.0,
        clients=chance.choice((1, 1, 2)),
        busy=chance.choice((consumer.BUSY, consumer.BUSY, 1.0)),
        age=2.0 if theme == "ever new" else 600.0,
    )


@dataclass
class _Draft:
    """A schedule while it is being drawn."""

    chance: random.Random
    replicas: list[str]
    workers: list[str]
    models: list[str]
    until: float
    pace: float
    happenings: list[Happening] = field(default_factory=list)
    away: str = ""

    def moment(self, share: float = 1.0) -> float:
        """Return a moment within the first ``share`` of the run."""
        return round(self.chance.uniform(0.0, self.until * share), 3)

    def add(self, at: float, what: str, who: str = "", model: str = "", lasting: float = 0.0, steps: int = 0) -> None:
        """Have something happen."""
        self.happenings.append(Happening(round(at, 3), what, who, model, round(lasting, 3), steps))

    def begin(self, at: float) -> str:
        """Have an operation begun, and return its id."""
        model = self.chance.choice(self.models)
        if self.chance.random() < 0.65:
            worker = self.chance.choice(self.workers)
            self.add(at, "stage", worker, model)
            return f"staging:{model}@{worker}"
        self.add(at, "install", "", model)
        return f"installation:{model}"


def _draw_operations(draft: _Draft) -> None:
    for _ in range(draft.chance.choice((1, 1, 2, 3))):
        at = draft.moment(0.5)
        target = draft.begin(at)
        for verb in draft.chance.choice(VERBS):
            at += draft.chance.uniform(0.05, 2.5)
            draft.add(at, verb, target)


def _draw_faults(draft: _Draft, *, is_long: bool) -> None:
    chance = draft.chance
    nodes = [*draft.replicas, *draft.workers]
    for _ in range(chance.choice((1, 2, 2, 3, 4))):
        what, who = chance.choice(FAULTS), chance.choice(nodes)
        lasting = chance.uniform(0.1, draft.until * 0.8)
        steps = chance.choice((0, chance.randint(1, 12), chance.randint(1, 60)))
        if what in {"crash", "stop"}:
            if is_long and not draft.away and chance.random() < 0.15:
                draft.away = who
            elif not is_long:
                lasting = min(lasting, 2.5)
        elif what == "cut":
            steps = 0
        elif what != "sleep":
            who, steps = "", 0
        draft.add(draft.moment(), what, who, lasting=lasting, steps=steps)


def _draw_sleeper(draft: _Draft) -> None:
    """An owner sleeps, or is cut off, for longer than its lease; meanwhile its operation is taken over or commanded."""
    chance = draft.chance
    draft.pace = chance.uniform(0.25, 0.6)
    for _ in range(chance.choice((1, 2))):
        at = chance.uniform(0.3, 2.0)
        target = draft.begin(at)
        fault = chance.choice(("sleep", "sleep", "cut"))
        owners = draft.replicas if target.startswith("installation") else [target.partition("@")[2]]
        for who in chance.sample(owners, min(len(owners), chance.choice((1, 1, 2)))):
            steps = chance.randint(0, 40) if fault == "sleep" else 0
            draft.add(at + chance.uniform(0.05, 1.5), fault, who, lasting=chance.uniform(8.0, 14.0), steps=steps)
        for verb in chance.choice(([], ["cancel"], ["cancel"], ["pause"], ["pause", "resume"], ["cancel", "retry"])):
            draft.add(at + chance.uniform(2.0, 11.0), verb, target)


def _draw_mourning(draft: _Draft) -> None:
    """An owner dies and stays away for longer than its lease, or for good."""
    chance = draft.chance
    draft.pace = chance.uniform(0.25, 0.6)
    at = chance.uniform(0.3, 2.0)
    target = draft.begin(at)
    # Which replica performs an installation is not known beforehand: one dies, and then perhaps the other.
    owners = draft.replicas[:-1] if target.startswith("installation") else [target.partition("@")[2]]
    for who in owners:
        draft.add(
            at + chance.uniform(0.0, 1.5), "crash", who, lasting=chance.uniform(9.0, 25.0), steps=chance.randint(0, 40)
        )
    if target.startswith("staging") and chance.random() < 0.4:
        draft.away = owners[0]
    if chance.random() < 0.5:
        draft.add(
            draft.moment(), chance.choice(FAULTS), chance.choice(draft.replicas), lasting=chance.uniform(0.1, 4.0)
        )


def _draw_apart(draft: _Draft) -> None:
    """The log is lost while those who know how an operation ended are cut off, and its owner, who does not, is back."""
    chance = draft.chance
    draft.pace = chance.uniform(0.6, 1.1)
    at, worker, model = chance.uniform(0.3, 1.0), draft.workers[0], chance.choice(draft.models)
    draft.add(at, "stage", worker, model)
    cut = at + chance.uniform(0.3, 1.0)
    healed = cut + chance.uniform(3.5, 4.5)
    draft.add(cut, "cut", worker, lasting=healed - cut)
    draft.add(cut + 0.1, chance.choice(("cancel", "cancel", "pause")), f"staging:{model}@{worker}")
    for other in (*draft.replicas, *draft.workers[1:]):
        draft.add(healed - chance.uniform(0.5, 1.0), "cut", other, lasting=chance.uniform(2.0, 5.0))
    draft.add(healed - chance.uniform(0.05, 0.3), "empty bus", lasting=chance.uniform(0.1, 0.5))
    if chance.random() < 0.3:
        draft.add(draft.moment(), chance.choice(FAULTS[:6]), chance.choice(draft.replicas), lasting=1.0)


def _draw_mislaid(draft: _Draft) -> None:
    """The log takes what owners write when they claim, but its answers are lost: they own what they do not know of."""
    chance = draft.chance
    draft.pace = chance.uniform(0.05, 0.4)
    for _ in range(chance.choice((2, 3))):
        at = draft.moment(0.5)
        draft.begin(at)
        draft.add(at + chance.uniform(0.0, 0.1), "lose answers", lasting=chance.uniform(0.1, 0.6))


def _draw_ever_new(draft: _Draft) -> dict[str, int]:
    """Names that nobody has heard before, and now and then an earlier one; who sleeps does so across the forgetting."""
    chance = draft.chance
    draft.pace = chance.uniform(0.05, 0.15)
    draft.models = [f"new{number}" for number in range(chance.randint(6, 12))]
    draft.until = chance.uniform(14, 20)
    for model in [*draft.models, *chance.choices(draft.models, k=3)]:
        at = draft.moment(0.9)
        worker = chance.choice(draft.workers)
        is_staging = chance.random() < 0.6
        target = f"staging:{model}@{worker}" if is_staging else f"installation:{model}"
        draft.add(at, "stage" if is_staging else "install", worker if is_staging else "", model)
        for verb in chance.choice(((), (), (), ("cancel",), ("cancel", "retry"), ("pause",), ("dismiss",))):
            at += chance.uniform(0.05, 6.0)
            draft.add(at, verb, target)
    for _ in range(chance.choice((1, 2, 3))):
        who, what = chance.choice([*draft.replicas, *draft.workers]), chance.choice(("sleep", "sleep", "cut", "crash"))
        steps = 0 if what == "cut" else chance.choice((0, chance.randint(1, 60)))
        draft.add(draft.moment(0.7), what, who, lasting=chance.uniform(3.0, 9.0), steps=steps)
    if chance.random() < 0.4:
        draft.add(draft.moment(), chance.choice(("join", "drop", "kill bus", "lose answers")), lasting=1.5)
    return dict.fromkeys(draft.models, 1)
