"""Schedules: what happens in one run, as a value made from a seed. The same value always runs the same way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Final

from tests.simulation.nats import Noise

OPERATIONS: Final = ("stage", "install", "cancel", "pause", "resume", "retry", "dismiss")


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


def drawn(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    chance = random.Random(f"schedule {seed}")
    replicas = [f"r{number}" for number in range(1, chance.choice((2, 2, 2, 3)) + 1)]
    workers = [f"w{number}" for number in range(1, chance.choice((1, 1, 1, 2)) + 1)]
    models = {f"m{number}": chance.randint(2, 4) for number in range(1, chance.choice((1, 1, 2)) + 1)}
    is_long = chance.random() < 0.25
    draft = _Draft(chance, replicas, workers, list(models), chance.uniform(12, 20) if is_long else chance.uniform(3, 7))
    _draw_operations(draft)
    away = _draw_faults(draft, is_long=is_long)
    nodes = [*replicas, *workers, "new"]
    return Schedule(
        seed=seed,
        replicas=len(replicas),
        workers=len(workers),
        models=models,
        broken=frozenset(name for name in models if chance.random() < 0.1),
        skews={name: chance.uniform(-5, 5) * 3600 for name in [*nodes, "server"]},
        noise=Noise(slow=chance.choice((0.0, 0.02, 0.1)), lag=chance.choice((0.0, 0.05, 0.3))),
        pace=chance.uniform(0.05, 0.4),
        until=draft.until,
        happenings=tuple(sorted(draft.happenings, key=lambda each: each.at)),
        away=away,
        patience=15.0,
        clients=chance.choice((1, 1, 2)),
    )


def _draw_operations(draft: _Draft) -> None:
    chance = draft.chance
    for _ in range(chance.choice((1, 1, 2, 3))):
        model = chance.choice(draft.models)
        if chance.random() < 0.65:
            worker = chance.choice(draft.workers)
            began = Happening(draft.moment(0.5), "stage", worker, model)
            target = f"staging:{model}@{worker}"
        else:
            began = Happening(draft.moment(0.5), "install", "", model)
            target = f"installation:{model}"
        draft.happenings.append(began)
        at = began.at
        for verb in _verbs(chance):
            at = round(at + chance.uniform(0.05, 2.5), 3)
            draft.happenings.append(Happening(at, verb, target))


def _verbs(chance: random.Random) -> list[str]:
    return chance.choice(([], [], [], ["cancel"], ["cancel", "retry"], ["pause", "resume"], ["pause", "cancel"],
                          ["pause"], ["retry"], ["dismiss"], ["cancel", "cancel"], ["pause", "resume", "cancel"]))  # fmt: skip


def _draw_faults(draft: _Draft, *, is_long: bool) -> str:
    chance, away = draft.chance, ""
    nodes = [*draft.replicas, *draft.workers]
    for _ in range(chance.choice((1, 2, 2, 3, 4))):
        what = chance.choice(
            ("crash", "crash", "crash", "stop", "pause", "cut", "kill bus", "hang bus", "empty bus", "drop", "repeat",
             "lose answers", "join")
        )  # fmt: skip
        who = chance.choice(nodes)
        lasting = round(chance.uniform(0.1, draft.until * 0.8), 3)
        steps = chance.choice((0, chance.randint(1, 12), chance.randint(1, 60)))
        if what in {"crash", "stop"}:
            if is_long and not away and chance.random() < 0.15:
                away = who
            elif not is_long:
                lasting = min(lasting, 2.5)
        elif what in {"kill bus", "hang bus", "empty bus", "drop", "repeat", "lose answers", "join"}:
            who, steps = "", 0
        elif what == "cut":
            steps = 0
        draft.happenings.append(Happening(draft.moment(), what, who, lasting=lasting, steps=steps))
    return away
