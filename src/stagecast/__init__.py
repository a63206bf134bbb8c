"""Stage model files onto workers, load them there, and show every operation the same on every replica.

A program with long-running work of its own takes part by `Service`; see docs/library.md. Nothing else is public, and
importing this loads nothing: each name brings its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagecast.client import Client
    from stagecast.errors import BadInput, BusError, Interrupted, StagecastError, Unknown, WrongState
    from stagecast.operation import Operation
    from stagecast.rows import Row
    from stagecast.service import Service

__all__ = [
    "BadInput",
    "BusError",
    "Client",
    "Interrupted",
    "Operation",
    "Row",
    "Service",
    "StagecastError",
    "Unknown",
    "WrongState",
]

_HOMES = {"Client": "client", "Operation": "operation", "Row": "rows", "Service": "service"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
