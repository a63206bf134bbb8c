from __future__ import annotations

import asyncio
import http.server
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from stagecast import backend, output
from stagecast.backend import running
from stagecast.errors import BackendFailed
from stagecast.loopback import free_port
from stagecast.recipes import Recipe
from tests.conftest import eventually
from tests.model_server import SERVER, die, get, is_gone, server_recipe, silent

WORKER = """
import asyncio, pathlib, sys, uvloop
from stagecast.backend import running
from stagecast.recipes import Recipe

async def work():
    recipe = Recipe(name="server", command=("{python}", sys.argv[1], "{port}", "serve"))
    folder = pathlib.Path(sys.argv[2])
    async with running(recipe, "m", folder, folder) as started:
        await started.until_ready(recipe, lambda line: None)
        print(started.pid, flush=True)
        await started.wait()

with asyncio.Runner(loop_factory={"uvloop": uvloop.new_event_loop, "asyncio": None}[sys.argv[3]]) as runner:
    runner.run(work())
"""


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., Recipe]:
    return partial(server_recipe, tmp_path)


class _Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[int]:
    """Yield a port on which another model's server answers its health check."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


async def test_a_backend_gets_ready_serves_and_is_gone_after_its_block(
    server: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = server(environment={"ANSWER": "forty-two"})
    async with running(recipe, "m", tmp_path, tmp_path / "logs") as started:
        await started.until_ready(recipe, silent)
        assert await get(f"{started.url}/anything") == (200, "forty-two")
        pid = started.pid
        assert not is_gone(pid)
    assert is_gone(pid)


async def test_each_start_has_an_instance_of_its_own(server: Callable[..., Recipe], tmp_path: Path) -> None:
    async with running(server(), "m", tmp_path, tmp_path) as one, running(server(), "m", tmp_path, tmp_path) as other:
        assert one.instance != other.instance
        assert one.url != other.url


async def test_it_runs_in_the_recipe_s_folder(tmp_path: Path) -> None:
    (tmp_path / "servers").mkdir()
    (tmp_path / "servers" / "server.py").write_text(SERVER)
    command = ("{python}", "server.py", "{port}", "serve")
    recipe = Recipe(name="server", command=command, working_directory=tmp_path / "servers")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)


async def test_one_that_ends_at_once_fails_with_its_code_and_last_words(
    server: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = server("crash")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        with pytest.raises(BackendFailed, match=r"exit code 1: no such tensor: lm_head \| and a last line"):
            await started.until_ready(recipe, silent)
        assert started.lines == ("no such tensor: lm_head", "and a last line")
    assert (tmp_path / "m.log").read_text() == "no such tensor: lm_head\nand a last line\n"


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    recipe = Recipe(name="llama", command=("no-such-program", "{port}"))
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        with pytest.raises(BackendFailed, match=r"llama ended .*cannot run no-such-program: No such file"):
            await started.until_ready(recipe, silent)


async def test_a_folder_that_is_not_there_is_named(server: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"cannot be started: .*nowhere"):
        async with running(server(working_directory=tmp_path / "nowhere"), "m", tmp_path, tmp_path):
            pass


async def test_one_that_shows_no_progress_is_stuck_after_the_recipe_s_patience(
    server: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "TICK", 0.05)
    recipe = server("hang", patience=0.3)
    told: list[str] = []
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        with pytest.raises(BackendFailed, match=r"no progress for 0\.3 s: it said nothing; see .*m\.log"):
            await started.until_ready(recipe, told.append)
    assert len(told) > 1


async def test_answers_are_progress_however_long_it_loads(
    server: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second passes with each answer here: it takes ten of them to load, and may be mute for five."""
    answers = heard_at = 0
    ask = backend._status

    async def asked(session: aiohttp.ClientSession, url: str) -> int:
        nonlocal answers
        status = await ask(session, url)
        answers += bool(status)
        return status

    def hear(_: output.Output) -> None:
        nonlocal heard_at
        heard_at = answers

    monkeypatch.setattr(backend, "TICK", 0.01)
    monkeypatch.setattr(backend, "_status", asked)
    monkeypatch.setattr(output.Output, "hear", hear)
    monkeypatch.setattr(output.Output, "silence", lambda _: float(answers - heard_at))
    recipe = server("slow", patience=5.0)
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)
    assert answers == heard_at == 10


async def test_all_that_it_says_is_logged_and_its_last_line_told(
    server: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LOG_LIMIT", 1_000_000)
    recipe = server("noisy")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)
        await eventually(lambda: started.last_line == "last é")
        assert started.lines[-3:] == ("step 2", "x" * 300, "last é")
        assert len(started.lines) == output.KEPT_LINES
    kept = [(tmp_path / name).stat().st_size for name in ("m.log", "m.log.1")]
    assert max(kept) < 1_200_000


async def test_a_log_that_cannot_be_written_never_stops_it(server: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    recipe = server("noisy")
    async with running(recipe, "m", tmp_path, tmp_path / "logs") as started:
        await started.until_ready(recipe, silent)
        assert started.last_line == "last é"


async def test_the_end_of_a_running_one_is_seen(server: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = server()
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)
        ended = asyncio.create_task(started.ended())
        await die(started)
        assert await ended == "it ended with exit code 3: out of luck"
        assert await started.wait() == 3


async def test_a_killed_one_names_the_signal(server: Callable[..., Recipe], tmp_path: Path) -> None:
    async with running(server("hang"), "m", tmp_path, tmp_path) as started:
        os.kill(started.pid, signal.SIGKILL)
        assert "signal SIGKILL (perhaps for want of memory)" in await started.ended()


async def test_one_that_ignores_sigterm_is_killed(
    server: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "GRACE", 0.1)
    recipe = server("stubborn")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)
    assert await started.wait() == -signal.SIGKILL


async def test_cancelling_ends_it_even_within_the_grace(server: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, ready = server("stubborn"), asyncio.Event()
    pids: list[int] = []

    async def work() -> None:
        async with running(recipe, "m", tmp_path, tmp_path) as started:
            await started.until_ready(recipe, silent)
            pids.append(started.pid)
            ready.set()

    task = asyncio.create_task(work())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(pids[0])


async def test_cancelling_while_it_loads_ends_it(server: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe, told = server("hang"), asyncio.Event()
    pids: list[int] = []

    async def work() -> None:
        async with running(recipe, "m", tmp_path, tmp_path) as started:
            pids.append(started.pid)
            await started.until_ready(recipe, lambda _: told.set())

    task = asyncio.create_task(work())
    await told.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_gone(pids[0])


async def test_its_children_end_with_it_and_hold_nothing_up(server: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = server("parent")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        await started.until_ready(recipe, silent)
        await eventually(lambda: started.last_line)
        child = int(started.last_line)
        await die(started)
        async with asyncio.timeout(20):
            assert await started.wait() == 3
        assert not is_gone(child)
    await eventually(lambda: is_gone(child))


async def test_a_port_on_which_another_server_answers_is_left_for_another_port(
    server: Callable[..., Recipe], tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([stranger, free_port()])
    monkeypatch.setattr(backend, "free_port", lambda: next(ports))
    recipe = server(environment={"ANSWER": "mine"})
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        instance = started.instance
        await started.until_ready(recipe, silent)
        assert await get(started.url) == (200, "mine")
        assert started.instance == instance


async def test_a_stranger_s_answer_is_refused_even_where_ours_never_listens(
    server: Callable[..., Recipe], tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "free_port", lambda: stranger)
    recipe = server("hang")
    async with running(recipe, "m", tmp_path, tmp_path) as started:
        with pytest.raises(BackendFailed, match=f"none of 3 ports, the last {stranger}"):
            await started.until_ready(recipe, silent)


async def test_a_port_on_which_somebody_listens_in_silence_is_left_too(
    server: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ports = iter([mute.getsockname()[1], free_port()])
        monkeypatch.setattr(backend, "free_port", lambda: next(ports))
        recipe = server()
        async with running(recipe, "m", tmp_path, tmp_path) as started:
            await started.until_ready(recipe, silent)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_never_outlives_a_worker_that_is_killed(
    server: Callable[..., Recipe], tmp_path: Path, loop: str
) -> None:
    script = server().command[1]
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, script, str(tmp_path), loop, stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    assert not is_gone(pid)
    worker.kill()
    await worker.communicate()
    await eventually(lambda: is_gone(pid))
