"""What a replica answers about operations, encoded once per revision: a read touches memory only (law L14)."""

from __future__ import annotations

import msgspec

from stagecast import rows
from stagecast.fold import Fold
from stagecast.revision import Revision
from stagecast.rows import Row
from stagecast.tracker import Tracker

_encoder = msgspec.json.Encoder()


class OperationList(msgspec.Struct, kw_only=True):
    """``GET /api/operations``."""

    operations: list[Row]
    revision: str
    degraded: bool


class View:
    """The list of operations as bytes, the same on every replica at the same revision (law L1)."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._held: tuple[Fold, Revision, bool] | None = None
        self._body = b""

    @property
    def etag(self) -> str:
        """The entity tag of `body`: its revision, and whether it may be out of date."""
        return f'"{self._tracker.revision}{"-degraded" if self._tracker.is_degraded else ""}"'

    @property
    def body(self) -> bytes:
        """The list as JSON."""
        fold, is_degraded = self._tracker.fold, self._tracker.is_degraded
        if self._held is None or self._held[0] is not fold or self._held[1:] != (fold.revision, is_degraded):
            listed = OperationList(operations=rows.listed(fold), revision=str(fold.revision), degraded=is_degraded)
            self._body = _encoder.encode(listed)
            self._held = (fold, fold.revision, is_degraded)
        return self._body
