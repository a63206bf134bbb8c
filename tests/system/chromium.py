"""A real Chromium without a window, spoken to over the Chrome DevTools Protocol (CDP), as much of it as tests need."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from stagecast.leash import leashed

BROWSER: Final = shutil.which("chromium")
_FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
_PATIENCE: Final = 15.0


class ScriptFailed(Exception):
    """A script threw in the page."""


class Complaint(NamedTuple):
    """What the browser's console shows in red. ``source`` is CDP's: ``network``, ``security``, …, or our own."""

    source: str
    text: str
    address: str


class Page:
    """A tab of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[Complaint] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return what a method of the protocol answers."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        try:
            return await self._answers[number]
        finally:
            del self._answers[number]

    async def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript, of its outcome if it is a promise. Raises `ScriptFailed`."""
        said = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise ScriptFailed(said["exceptionDetails"].get("exception", {}).get("description", said))
        return said["result"].get("value")

    async def until(self, condition: str, timeout: float = 10.0) -> Any:
        """Return the value of JavaScript once it is true, looking every 20 ms. Raises `TimeoutError`."""
        look = f"const value = {condition}; value ? resolve(value) : setTimeout(look, 20);"
        script = f"const look = () => {{ try {{ {look} }} catch (error) {{ reject(error); }} }}; look();"
        try:
            async with asyncio.timeout(timeout):
                return await self.evaluate(f"new Promise((resolve, reject) => {{ {script} }})")
        except TimeoutError:
            shown = await self.evaluate("document.body.innerText")
            raise TimeoutError(f"{condition}: not within {timeout} s; the page shows:\n{shown}") from None

    async def open(self, url: str) -> None:
        """Go to a page and wait until it is there, its scripts too."""
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    async def press(self, selector: str) -> None:
        """Press the mouse on the middle of an element, as a person does: what covers it gets the press."""
        x, y = await self.until(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)}); if (!element) return null;"
            " element.scrollIntoView({ block: 'center' }); const box = element.getBoundingClientRect();"
            " return box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def screenshot(self) -> bytes:
        """Return the whole page, beyond the window too, as PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def listen(self) -> None:
        """Take what the browser says until the connection ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" not in said:
                self.complaints += _complaints(said["method"], said["params"])
            elif (answer := self._answers.get(said["id"])) is None or answer.done():
                continue
            elif "error" in said:
                answer.set_exception(RuntimeError(f"the browser refused: {said['error']['message']}"))
            else:
                answer.set_result(said["result"])
        for answer in self._answers.values():
            answer.set_exception(ConnectionResetError("the browser has gone"))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncGenerator[Page, None]:
    """Run a browser with its profile in ``folder`` for as long as the block lasts; yield its one tab, still empty."""
    async with _running(folder), aiohttp.ClientSession() as session:
        port = (folder / "DevToolsActivePort").read_text().split()[0]
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            (tab,) = [each for each in await response.json(content_type=None) if each["type"] == "page"]
        async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            listener = asyncio.create_task(page.listen())
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            try:
                yield page
            finally:
                await socket.close()
                await listener


@asynccontextmanager
async def _running(folder: Path) -> AsyncGenerator[None, None]:
    assert BROWSER is not None
    # Chromium leaves folders in TMPDIR, and a socket whose path must be short.
    scratch = tempfile.mkdtemp(prefix="c")
    process = await asyncio.create_subprocess_exec(
        *leashed((BROWSER, *_FLAGS, f"--user-data-dir={folder}", "about:blank")),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        env=os.environ | {"TMPDIR": scratch},
    )  # fmt: skip
    try:
        # Its second line is written last: with the line break the file is whole.
        async with asyncio.timeout(_PATIENCE):
            while "\n" not in await asyncio.to_thread(_text, folder / "DevToolsActivePort"):
                await asyncio.sleep(0.02)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _complaints(method: str, said: dict[str, Any]) -> list[Complaint]:
    if method == "Log.entryAdded" and said["entry"]["level"] == "error":
        entry = said["entry"]
        return [Complaint(entry["source"], entry["text"], entry.get("url", ""))]
    if method == "Runtime.exceptionThrown":
        details = said["exceptionDetails"]
        return [Complaint("exception", str(details.get("exception", details)), details.get("url", ""))]
    if method == "Runtime.consoleAPICalled" and said["type"] in {"error", "assert"}:
        return [
            Complaint("console", " ".join(str(each.get("description", each.get("value"))) for each in said["args"]), "")
        ]
    return []
