"""A model of three files to install from a real server, and one call of `install` with what it reports."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping

from stagecast.gallery import Source, SourceFile
from stagecast.installation import install, staged_bytes
from stagecast.manifest import PIECE_SIZE, Manifest, check
from stagecast.messages import Bottleneck
from stagecast.publication import WORKSHOP
from stagecast.store import Store
from stagecast.transfer.limit import RateLimit
from tests.sample import contents_of
from tests.upstream_server import UpstreamServer

WEIGHTS = os.urandom(PIECE_SIZE * 3 + 12345)
CONTENTS = {"config.json": b"{}", "empty": b"", "sub/weights.bin": WEIGHTS}
KEY = "/sub/weights.bin"


class Work:
    """One call of `install`, and what it reported."""

    def __init__(self, source: Source, store: Store) -> None:
        self.source = source
        self.store = store
        self.begun = staged_bytes(source, store)
        self.moved = 0
        self.entered: list[int] = []
        self.completed: list[int] = []
        self.spent: list[Mapping[Bottleneck, float]] = []
        self.stop = threading.Event()
        self.on_advance = lambda: None

    def advance(self, count: int) -> None:
        assert count >= 0
        self.moved += count
        self.on_advance()

    def run(self, *, limit: RateLimit | None = None, patience: float = 60, stall: float = 60) -> Manifest:
        return install(
            self.source,
            self.store,
            advance=self.advance,
            entered=self.entered.append,
            completed=self.completed.append,
            spent=self.spent.append,
            stop=self.stop,
            limit=limit,
            patience=patience,
            stall=stall,
        )

    def succeeds(self, contents: dict[str, bytes] = CONTENTS) -> Manifest:
        """Run it, and check everything that has to be true afterwards."""
        manifest = self.run()
        check(manifest)
        assert contents_of(self.store.models / self.source.model) == contents
        assert self.store.recorded(self.source.model) == manifest
        assert self.begun + self.moved == manifest.size == sum(map(len, contents.values()))
        assert [path.name for path in (self.store.models / WORKSHOP).iterdir()] == []
        return manifest


def source_of(server: UpstreamServer, *, published: bool = True) -> Source:
    """Return the model as the server has it, with its digests published or not."""

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest() if published else ""

    files = (SourceFile(path, f"{server.url}/{path}", digest(content)) for path, content in CONTENTS.items())
    return Source("m", tuple(files))


def script_of(server: UpstreamServer, store: Store, first: str = "", *, published: bool = True) -> str:
    """Return a program that installs the model, after the statement ``first``."""
    return f"""
import threading
from pathlib import Path
from stagecast.gallery import Source, SourceFile
from stagecast.installation import install
from stagecast.store import Store
{first}
install({source_of(server, published=published)!r}, Store(Path({str(store.models)!r}), Path({str(store.data)!r})),
        advance=lambda count: None, entered=lambda number: None, stop=threading.Event())
"""
