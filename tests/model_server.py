"""A model server for tests: a real process that loads, serves, dies or hangs as told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import aiohttp

from stagecast.backend import Backend
from stagecast.recipes import Recipe

SERVER = """
import http.server, os, signal, subprocess, sys
port, mode = int(sys.argv[1]), sys.argv[2]
polls = 0

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global polls
        if self.path == "/die":
            print("out of luck", flush=True)
            os._exit(3)
        polls += 1
        self.send_response(503 if mode == "slow" and polls < 10 else 200)
        self.end_headers()
        self.wfile.write(os.environ.get("ANSWER", "").encode())

    def log_message(self, *arguments):
        pass

if mode == "crash":
    sys.exit("no such tensor: lm_head\\nand a last line")
if mode == "hang":
    signal.pause()
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "parent":
    print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
if mode == "noisy":
    print("loading\\n" * 100 + "step 1\\rstep 2\\n" + "x" * 2_000_000 + "\\nlast \\u00e9", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def server_recipe(folder: Path, mode: str = "serve", **options: object) -> Recipe:
    """Return a recipe for the server, written to a folder."""
    path = folder / "server.py"
    path.write_text(SERVER)
    return Recipe(name="server", command=("{python}", str(path), "{port}", mode), **options)  # type: ignore[arg-type]


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended, waited for or not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def silent(line: str) -> None:
    pass


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


async def die(started: Backend) -> None:
    with contextlib.suppress(aiohttp.ClientError):
        await get(f"{started.url}/die")
