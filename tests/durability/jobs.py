"""All jobs that are killed and cut off from their power."""

from __future__ import annotations

from typing import Final

from tests.durability.kills import Job
from tests.durability.repairing import REPAIRS
from tests.durability.sharing import SHARINGS
from tests.durability.staging import SHAPES

JOBS: Final[tuple[Job, ...]] = (*SHAPES, *REPAIRS, *SHARINGS)
