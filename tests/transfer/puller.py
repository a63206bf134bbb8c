"""A process that pulls a model and is killed once so much has come: ``puller.py FOLDER URL MANIFEST RATE BYTES``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from stagecast.manifest import decode
from stagecast.store import Store
from stagecast.transfer import Holder, RateLimit, pull


def main(folder: Path, url: str, manifest: Path, rate: int, end: int) -> None:
    store = Store(folder / "models", folder / "data")

    with store.partial(decode(manifest.read_bytes())) as partial:
        done = partial.verified_bytes

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if done > end:
                os.kill(os.getpid(), signal.SIGKILL)

        pull(
            partial.manifest,
            partial,
            lambda: [Holder("holder", url)],
            limit=RateLimit(rate),
            advance=advance,
            entered=lambda _: None,
            stop=threading.Event(),
        )
        partial.publish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
