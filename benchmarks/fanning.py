"""One node of the fan-out in a process of its own: ``fanning.py FOLDER HOST``. Serves always, and pulls on demand.

It is put together as a node does it: `Store`, `FileServer`, `fetch_manifest`, `pull`, `publish`. One line of JSON comes
in for each thing to do, and one goes out when it is done.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, fetch_manifest, pull


def _get(store: Store, origin: str, peers: list[str], digest: str) -> dict[str, Any]:
    whole = Holder("origin", origin)
    holders = [whole, *(Holder(url, url, is_whole=False) for url in peers)]
    manifest = fetch_manifest(whole, digest)
    with store.partial(manifest) as partial:
        pull(manifest, partial, lambda: holders, advance=lambda _: None, entered=lambda _: None, stop=threading.Event())
        partial.publish()
    return {"ended": time.monotonic()}


def main(folder: Path, host: str) -> None:
    """Serve until the input ends."""
    store = Store(folder / "models", folder / "data")
    with FileServer(store, host) as server:
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            wish = json.loads(line)
            print(json.dumps(_get(store, **wish)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
