"""What the caller of `pull` was told, and what is to be told next. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from stagecast.pieces import Piece


class Report(NamedTuple):
    """What is new: bytes that came, bytes that were only checked, the file that moves, files that are whole now."""

    came: int
    checked: int
    file: int
    whole: list[int]


class News:
    """Of the pieces ``missing``; each byte of a piece is told once, however often it comes."""

    def __init__(self, missing: Iterable[Piece]) -> None:
        self._left = Counter(piece.file for piece in missing)
        self._told: dict[Piece, int] = {}
        self._came = 0
        self._checked = 0
        self._whole: list[int] = []
        self._furthest = -1
        self._moving: set[int] = set()

    def moves(self, files: Iterable[int]) -> None:
        """Note that pieces of these files are on their way."""
        self._moving.update(files)

    def reached(self, piece: Piece, position: int, *, is_here: bool) -> None:
        """Note how far a piece is; ``is_here``: the bytes were here before, and were only checked."""
        told = self._told.get(piece, 0)
        if position > told:
            self._told[piece] = position
            if is_here:
                self._checked += position - told
            else:
                self._came += position - told

    def verified(self, piece: Piece) -> None:
        """Note that a piece is verified."""
        self._told.pop(piece, None)
        self._left[piece.file] -= 1
        if not self._left[piece.file]:
            self.completed(piece.file)

    def completed(self, file: int) -> None:
        """Note that a file is whole."""
        self._whole.append(file)
        self._moving.discard(file)

    def take(self, *, is_complete: bool) -> Report:
        """Return what is to be told now, and forget it."""
        came, self._came = self._came, 0
        # What was checked while bytes came waits, so that the caller does not hear of two phases in turn.
        checked = self._checked if not came or is_complete else 0
        self._checked -= checked
        whole, self._whole = self._whole, []
        self._furthest = max([self._furthest, *whole])
        return Report(came, checked, min(self._moving, default=self._furthest), whole)
