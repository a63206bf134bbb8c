"""The page, pressed and watched in a real browser: through a real balancer, while the replica behind it is killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final

import nats
import pytest

from stagecast.client import Client
from stagecast.cluster import Cluster, ClusterSettings, cluster
from stagecast.part_files import PREFIX
from stagecast.publication import WORKSHOP
from tests.conftest import eventually
from tests.system.chromium import BROWSER, Complaint, Page, browsing

pytestmark = [
    pytest.mark.system,
    pytest.mark.chromium,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine: apt install chromium"),
]

RATE: Final = 2_000_000
SLOW: Final = 100_000
FILES: Final = {f"part-{number}.bin": 3_000_000 for number in range(4)}
STAGING: Final = "staging:owl@worker-1"

WATCH: Final = """(() => {
  const find = (selector) => document.querySelector(selector);
  const look = () => {
    const row = find(`#operations > [data-operation-id="staging:owl@worker-1"]`);
    const ended = find(`#recent > [data-operation-id="staging:owl@worker-1"]`);
    const now = {
      place: row ? "operations" : ended ? `recent, ${ended.dataset.state}` : "nowhere",
      progress: row && row.dataset.progress !== "" ? Number(row.dataset.progress) : null,
      connection: find("#connection").dataset.state,
      replica: find("#replica").textContent,
    };
    if (JSON.stringify(now) !== JSON.stringify(window.seen.at(-1))) window.seen.push(now);
  };
  window.seen = [];
  look();
  const everything = { subtree: true, childList: true, attributes: true, characterData: true };
  new MutationObserver(look).observe(document, everything);
})()"""
"""Keeps every state that the page ever showed in ``window.seen``, however short: it looks after each change."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Cluster]:
    model = tmp_path / "data" / "models" / "owl"
    model.mkdir(parents=True)
    for name, size in FILES.items():
        (model / name).write_bytes(os.urandom(size))
    async with cluster(ClusterSettings(data=tmp_path / "data", replicas=2, workers=2, rate_limit=RATE)) as running:
        yield running


@pytest.fixture
async def page(running: Cluster, tmp_path: Path) -> AsyncIterator[Page]:
    async with browsing(tmp_path / "profile") as page:
        await page.open(f"{running.url}/")
        await page.until("document.querySelector('#connection').dataset.state === 'live'")
        yield page


def runs(values: Iterable[Any]) -> list[Any]:
    """Return the values without immediate repetitions."""
    return [value for value, _ in itertools.groupby(values)]


async def test_a_staging_is_seen_whole_while_the_replica_behind_the_page_is_killed(
    running: Cluster, page: Page
) -> None:
    await page.until("document.querySelector('[data-model=owl] [name=target]')?.length === 3")
    await page.evaluate("document.querySelector('[data-model=owl] [name=target]').value = 'worker-1'")
    await page.evaluate(WATCH)
    await page.press("[data-model=owl] button[value=stage]")
    await page.until("window.seen.at(-1).place === 'operations'")
    await page.until("window.seen.at(-1).progress > 20")
    message = "document.querySelector('#operations [data-slot=message]').textContent"
    await page.until(f"{message} === 'limited by the rate limit'")
    assert page.complaints == []
    killed = await page.evaluate("document.querySelector('#replica').textContent")
    await running.kill(killed)
    await page.until(f"window.seen.at(-1).replica !== '{killed}' && window.seen.at(-1).connection === 'live'")
    assert await page.evaluate("window.seen.at(-1).place") == "operations", "it ended before the page was back"
    await page.until("window.seen.at(-1).place === 'recent, succeeded'", timeout=15)
    title = "document.querySelector('#recent [data-slot=mean]').title"
    await page.until(f"{title}.startsWith('Mean rate; most of the time: limit ')")
    seen = await page.evaluate("window.seen")

    assert runs(each["place"] for each in seen) == ["nowhere", "operations", "recent, succeeded"]
    progress = runs(each["progress"] for each in seen if each["progress"] is not None)
    assert progress == sorted(progress)
    assert len(progress) >= 5
    assert runs(each["connection"] for each in seen) == ["live", "reconnecting", "live"]
    other = ({"replica-1", "replica-2"} - {killed}).pop()
    assert runs(each["replica"] for each in seen) == [killed, other]
    await page.until("document.querySelector('[data-node=worker-1]').innerText.includes('owl')")
    assert not [each for each in page.complaints if not is_of_the_kill(each)]


async def test_what_one_call_asked_for_stands_together_below_a_line_for_all_of_it(running: Cluster, page: Page) -> None:
    await page.until("document.querySelector('[data-model=owl] [name=target]')?.length === 3")
    await page.press("[data-model=owl] button[value=stage]")
    await page.until("document.querySelectorAll('#operations > .part').length === 2")
    heading = "document.querySelector('#operations > :first-child .call').textContent"
    await page.until(f"{heading}.startsWith('owl: 2\u00a0nodes · ') && {heading}.endsWith(' · 2 running')")
    first = await page.evaluate(heading)
    await page.until(f"{heading} !== {json.dumps(first)}")
    assert await page.evaluate("document.querySelectorAll('#operations .call:not(:empty)').length") == 1
    await page.until("Number(document.querySelector('#operations > :last-child').dataset.progress) > 15")
    async with Client(running.url) as client:
        await client.limit(rate=SLOW)  # the other one is to go on for as long as anybody looks
    await page.press("#operations > :last-child button[data-verb=cancel]")
    await page.until("document.querySelectorAll('#operations > li').length === 1")
    await page.until(f"{heading}.endsWith(' · 1 running, 1 cancelled')")
    ended = "document.querySelector('#recent > [data-state=cancelled] [data-slot=task]').textContent"
    assert (await page.evaluate(ended)).endswith(" MB freed")
    assert page.complaints == []


async def test_a_cancel_keeps_what_came_and_a_deletion_frees_that_too(running: Cluster, page: Page) -> None:
    await page.until("document.querySelector('[data-model=owl] [name=target]')?.length === 3")
    await page.evaluate("document.querySelector('[data-model=owl] [name=target]').value = 'worker-1'")
    await page.press("[data-model=owl] button[value=stage]")
    await page.until("Number(document.querySelector('#operations > li')?.dataset.progress) > 15")
    await page.press("#operations > li button[data-verb=keep]")
    ended = "document.querySelector('#recent > [data-state=cancelled] [data-slot=task]')?.textContent"
    assert (await page.until(ended)).endswith(" MB kept")
    workshop = running.data / "worker-1" / "models" / WORKSHOP
    assert list(workshop.glob(f"{PREFIX}*"))

    delete = "[data-model=owl] button[value=delete]"
    await page.press(delete)
    await page.until(f"document.querySelector('{delete}').textContent === 'Delete everywhere?'")
    await page.evaluate("document.activeElement.blur()")
    await page.until(f"document.querySelector('{delete}').textContent === 'Delete'")
    assert await page.evaluate("document.querySelector('[data-model=owl]') !== null"), "once is only asked"
    await page.press(delete)
    await page.press(delete)
    await page.until("document.querySelector('#models ~ .known').checkVisibility()")
    assert not list(workshop.glob(f"{PREFIX}*"))
    assert page.complaints == []


async def test_without_a_key_the_page_says_that_one_is_needed_and_nothing_that_it_cannot_know(tmp_path: Path) -> None:
    settings = ClusterSettings(data=tmp_path / "data", replicas=1, workers=0, api_key="open sesame")
    async with cluster(settings) as running, browsing(tmp_path / "profile") as page:
        await page.open(f"{running.url}/")
        visible = "[...document.querySelectorAll('.empty')].filter((each) => each.checkVisibility())"
        needed = "A key is needed to see what is here: enter it above."
        await page.until(f"{visible}.length === 4 && {visible}.every((each) => each.textContent === '{needed}')")
        await page.evaluate("document.querySelector('#key-field').value = 'open sesame'")
        await page.press("#key button")
        await page.until(f"{visible}.some((each) => each.textContent.startsWith('No model is here yet'))")
        await page.until(f"{visible}.every((each) => each.textContent !== '{needed}')")


async def test_a_verification_is_told_apart_from_a_staging_and_shows_no_bytes_that_it_only_read(tmp_path: Path) -> None:
    (tmp_path / "data" / "models" / "owl").mkdir(parents=True)
    (tmp_path / "data" / "models" / "owl" / "a.bin").write_bytes(os.urandom(1_000_000))
    settings = ClusterSettings(data=tmp_path / "data", replicas=1, workers=0)
    async with cluster(settings) as running, browsing(tmp_path / "profile") as page, Client(running.url) as client:
        await page.open(f"{running.url}/")
        await page.until("document.querySelector('#connection').dataset.state === 'live'")
        await page.until("document.querySelector('[data-model=owl]') !== null")
        await client.verify("owl")
        told = "document.querySelector('#recent > [data-state=succeeded] [data-slot={}]')?.textContent"
        assert await page.until(told.format("task")) == "Verification on replica-1 · undamaged"
        assert [await page.evaluate(told.format(slot)) for slot in ("bytes", "mean")] == ["", ""]
        assert page.complaints == []


async def test_a_foreign_installation_that_failed_leaves_the_list_and_its_end_is_told(tmp_path: Path) -> None:
    """No list of the API shows it any more, so a page must not go on to: nobody could dismiss it there."""
    ufo = {"gallery_element_name": "ufo", "progress": 10.0, "cancellable": True}
    settings = ClusterSettings(data=tmp_path / "data", replicas=1, workers=0)
    async with cluster(settings) as running, browsing(tmp_path / "profile") as page:
        await page.open(f"{running.url}/")
        await page.until("document.querySelector('#connection').dataset.state === 'live'")
        theirs = await nats.connect(running.nats_url)
        for status, place in ((ufo, "#operations"), (ufo | {"processed": True, "error": "no such file"}, "#recent")):
            said = {"job_id": "job-ufo", "status": status}
            await theirs.publish("gallery.ufo.progress", json.dumps(said).encode())
            await page.until(f"document.querySelector('{place} > [data-operation-id=\"installation:ufo\"]') !== null")
        await theirs.close()
        assert await page.evaluate("document.querySelectorAll('#operations > li').length") == 0
        ended = "document.querySelector('#recent > li')"
        assert await page.evaluate(f"{ended}.dataset.state") == "failed"
        assert "no such file" in await page.evaluate(f"{ended}.innerText")
        assert page.complaints == []


async def test_a_replica_that_is_told_to_end_lets_the_page_go_at_once(running: Cluster, page: Page) -> None:
    told = await page.evaluate("document.querySelector('#replica').textContent")
    await page.evaluate(WATCH)
    child = running.children[told]
    async with asyncio.timeout(8):
        await child.stop()
    await page.until(f"window.seen.at(-1).replica !== '{told}' && window.seen.at(-1).connection === 'live'", timeout=20)
    assert page.complaints == []


async def test_the_docs_open_without_complaint_and_a_complaint_would_have_been_seen(
    running: Cluster, page: Page
) -> None:
    await page.open(f"{running.url}/api/docs")
    assert "GET /api/operations/stream" in await page.evaluate("document.body.innerText")
    assert await page.evaluate("getComputedStyle(document.querySelector('dl')).display") == "grid"
    assert page.complaints == []
    await page.evaluate("document.head.append(Object.assign(document.createElement('style'), { textContent: 'b{}' }))")
    await page.evaluate("fetch('/page/none.js').then(() => { console.error('said') })")
    await page.evaluate("setTimeout(() => { throw new Error('thrown'); })")
    expected = {"security", "network", "exception", "console"}
    await eventually(lambda: {each.source for each in page.complaints} == expected)


def is_of_the_kill(complaint: Complaint) -> bool:
    """Tell whether it is the browser's word on a connection that broke, which no script can prevent."""
    return complaint.source == "network" and "/api/" in complaint.address
