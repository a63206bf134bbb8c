"""One end of a transfer in a process of its own: ``moving.py serve|pull MODELS DATA [CERTIFICATE]``.

Both are put together as a node does it: a `Store`, a `FileServer` on one end, `pull` and `publish` on the other.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from stagecast.store import Store
from stagecast.transfer import FileServer, Holder, client_tls, fetch_manifest, pull, server_tls

CERTIFICATE = Path(sys.argv[4]) if sys.argv[4:] and sys.argv[4] else None


def _serve(store: Store) -> None:
    """Serve all models; the first line says where, and what each one's digest is."""
    digests = {name: store.manifest(name).digest for name in store.names()}
    with FileServer(store, "127.0.0.1", tls=server_tls(CERTIFICATE, None)) as server:
        print(json.dumps({"url": server.url, "digests": digests}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(server.bytes_sent), flush=True)


def _pull(store: Store) -> None:
    """Stage what each line asks for, from manifest to publication, and say how long that took."""
    print(json.dumps("up"), flush=True)
    for line in sys.stdin:
        print(json.dumps(_stage(store, **json.loads(line))), flush=True)


def _stage(store: Store, do: str, urls: list[str], digest: str, **options: int) -> Any:
    if do == "clear":
        for name in store.names():
            store.remove(name)
        return "cleared"
    holders, stop = [Holder(url, url) for url in urls], threading.Event()
    began = time.monotonic()
    tls = client_tls(CERTIFICATE)
    manifest = fetch_manifest(holders[0], digest, tls=tls)
    with store.partial(manifest) as partial:
        pulled = pull(
            manifest, partial, lambda: holders, advance=lambda _: None, entered=lambda _: None, stop=stop, tls=tls,
            **options,
        )  # fmt: skip
        moved = time.monotonic()
        partial.publish()
    ended = time.monotonic()
    return {"seconds": ended - began, "publishing": ended - moved, "waits": pulled.waits.seconds()}


if __name__ == "__main__":
    store = Store(Path(sys.argv[2]), Path(sys.argv[3]))
    try:
        {"serve": _serve, "pull": _pull}[sys.argv[1]](store)
    finally:
        if sys.argv[1] == "pull":
            shutil.rmtree(store.data, ignore_errors=True)
