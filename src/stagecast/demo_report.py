"""What had to come true in the demo, held against what was measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stagecast.demo_checks import Judge, Tick, Verdict
from stagecast.demo_job import Story
from stagecast.demo_vectors import compare
from stagecast.demo_view import Check
from stagecast.quantities import format_size
from stagecast.rows import Row

_LEAST_HERTZ: Final = 20.0
_LONGEST_SILENCE: Final = 3.0
"""Seconds from the kill to the next tick; ticks come once a second."""


def checks_of(
    story: Story, verdict: Verdict, judge: Judge, replicas: Sequence[str], workers: Sequence[str]
) -> list[Check]:
    """Return every check. ``replicas`` are the living ones."""
    return [*_files(story, judge, replicas, workers), *_picture(story, verdict, judge), *_embeddings(story, replicas)]


def silence_after(ticks: Sequence[Tick], killed_at: float, known: int) -> float | None:
    """Return the seconds from the kill until more bytes were shown than the ``known`` ones; None if never."""
    return next((tick.time - killed_at for tick in ticks if tick.time > killed_at and tick.bytes > known), None)


def _files(story: Story, judge: Judge, replicas: Sequence[str], workers: Sequence[str]) -> list[Check]:
    everywhere = all("installation" in judge.shown_by[name] for name in (*replicas, story.taken_by))
    expected = {*replicas, *workers}
    return [
        Check("installed from the gallery", _moved(story.installed, story.install_seconds), _is_whole(story.installed)),
        Check("its progress seen on every replica", "yes" if everywhere else "no", everywhere),
        Check("staged onto the workers", _moved(story.staged, story.stage_seconds), _is_whole(story.staged)),
        Check("held whole by", ", ".join(sorted(story.holders)), expected <= story.holders),
    ]


def _picture(story: Story, verdict: Verdict, judge: Judge) -> list[Check]:
    silence = silence_after(judge.ticks, story.killed_at, story.bytes_at_kill) if story.killed else None
    killed = f"{story.taken_by} at {story.killed_progress:.0f} %" if story.killed else "nobody"
    gap = f"{verdict.gap * 1000:.0f} ms apart at most"
    polls = f"{verdict.polls:,} at {verdict.hertz:.0f} Hz, {verdict.failed} failed, {gap}"
    compared = f"{verdict.answers_compared:,} answers at {verdict.compared:,} revisions"
    return [
        Check("killed the replica that took it", killed, story.killed),
        Check("from the kill to the next tick", f"{silence:.2f} s" if silence is not None else "never",
              silence is not None and silence <= _LONGEST_SILENCE),
        Check("polls through the balancer", polls, verdict.hertz >= _LEAST_HERTZ and not verdict.failed),
        Check("flickers", str(verdict.flickers), not verdict.flickers),
        Check("steps backward", str(verdict.backward), not verdict.backward),
        Check("rows of what had ended", str(verdict.phantoms), not verdict.phantoms),
        Check("distinct bodies at one revision", f"{verdict.distinct_bodies} ({compared} compared)",
              verdict.distinct_bodies == 1 and verdict.compared > 0),
    ]  # fmt: skip


def _embeddings(story: Story, replicas: Sequence[str]) -> list[Check]:
    found = compare(story.vectors)
    similarity = f"paraphrases {found.paraphrases:.3f}, unrelated {found.unrelated:.3f}"
    shape = f"{found.width} wide, length {found.length:.6f}"
    same = f"{found.difference:.1e} apart at most, through the balancer and {', '.join(replicas)}"
    return [
        Check("loaded and embedded", f"in {story.embed_seconds:.1f} s; {shape}; {similarity}", found.is_sound),
        Check("the same vectors everywhere", same, found.are_equal and set(replicas) <= story.vectors.keys()),
    ]


def _is_whole(rows: Sequence[Row]) -> bool:
    return bool(rows) and all(row.state == "succeeded" and row.current_bytes == row.total_bytes > 0 for row in rows)


def _moved(rows: Sequence[Row], seconds: float) -> str:
    count = sum(row.current_bytes for row in rows)
    rate = f", {format_size(count / seconds)}/s" if seconds > 0 else ""
    return f"{count:,} bytes onto {len(rows)} in {seconds:.1f} s{rate}"
