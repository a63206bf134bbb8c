"""A bounded log equals its model: whatever is appended, however time passes and whenever its process dies."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from hypothesis import Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stagecast.bus import Anew, CaughtUp
from stagecast.bus.memory import MemoryLog
from stagecast.bus.sqlite import opened
from stagecast.errors import AppendConflict
from stagecast.messages import Entry
from stagecast.settings import Bounds

PHASES = (Phase.explicit, Phase.generate)  # a shorter failure is not worth the minutes that it takes to find
BOUNDS = Bounds(count=5, age=10.0)
EXPECTED = ["any", "none", "this", "other"]
SUBJECTS = [f"stagecast.history.{number}-1" for number in range(8)]


class InMemory(RuleBasedStateMachine):
    """The model is the entries that stand, in the order of their sequences."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.sequence = 0
        self.identity = ""
        self.model: list[Entry] = []
        self.runner = asyncio.Runner()
        self.log = self.runner.run(self.made())

    async def made(self) -> MemoryLog:
        return MemoryLog(lambda: self.now, BOUNDS)

    def standing(self, subject: str) -> Entry | None:
        self.model = [entry for entry in self.model if entry.time > self.now - BOUNDS.age][-BOUNDS.count :]
        return next((entry for entry in self.model if entry.subject == subject), None)

    @rule(
        words=strategies.lists(
            strategies.tuples(strategies.sampled_from(SUBJECTS), strategies.sampled_from(EXPECTED)),
            min_size=1, max_size=8,
        )
    )  # fmt: skip
    def many_append_at_once(self, words: list[tuple[str, str]]) -> None:
        # What each expects is how it stood before any of them.
        stood = [self.standing(subject) for subject, _ in words]
        expected = [
            {"any": None, "none": 0, "this": held.sequence if held else 0, "other": 10**9}[expects]
            for held, (_, expects) in zip(stood, words, strict=True)
        ]

        async def append() -> list[int | BaseException]:
            appends = [
                self.log.append(subject, str(number).encode(), expected=sequence)
                for number, ((subject, _), sequence) in enumerate(zip(words, expected, strict=True))
            ]
            return await asyncio.gather(*appends, return_exceptions=True)

        for number, (outcome, (subject, _), sequence) in enumerate(
            zip(self.runner.run(append()), words, expected, strict=True)
        ):
            held = self.compared(subject)
            if sequence not in {None, held.sequence if held else 0}:
                assert isinstance(outcome, AppendConflict)
                continue
            self.sequence += 1
            assert outcome == self.sequence
            others = [entry for entry in self.model if entry.subject != subject]
            self.model = [*others, Entry(subject, self.sequence, str(number).encode(), self.now)]

    def compared(self, subject: str) -> Entry | None:
        """Return what an append is compared with."""
        return self.standing(subject)

    @rule(seconds=strategies.sampled_from([1.0, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_stands_as_the_model_does(self) -> None:
        if not hasattr(self, "log"):
            return
        for subject in SUBJECTS:
            assert self.runner.run(self.log.last(subject)) == self.standing(subject)
        begun, *entries, end = self.runner.run(self.heard())
        assert isinstance(begun, Anew)
        assert begun.identity == (self.identity or begun.identity), "however often it is opened"
        self.identity = begun.identity
        assert entries == self.model
        assert end == CaughtUp(self.sequence)

    async def heard(self) -> list[object]:
        found: list[object] = []
        async with aclosing(self.log.follow()) as follower:
            async for each in follower:
                found.append(each)
                if isinstance(each, CaughtUp):
                    break
        return found

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()


class InFile(InMemory):
    """The same, and the next process goes on with the file."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        super().begin()

    async def made(self) -> MemoryLog:
        self.stack = AsyncExitStack()
        path = Path(self.folder.name) / "log"
        bus = await self.stack.enter_async_context(opened(path, BOUNDS, clock=lambda: self.now))
        return bus.history

    def compared(self, subject: str) -> Entry | None:
        """What is asked at once is written together, and only then is there one too many.

        Which of them came first nobody can tell, so a conflict with what the others drove out is as good.
        """
        return next((entry for entry in self.model if entry.subject == subject), None)

    @rule()
    def the_next_process_opens_it(self) -> None:
        self.runner.run(self.stack.aclose())
        self.log = self.runner.run(self.made())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.folder.cleanup()
        super().teardown()


InMemory.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, phases=PHASES
)
InFile.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, phases=PHASES
)
TestInMemory = InMemory.TestCase
TestInFile = InFile.TestCase
