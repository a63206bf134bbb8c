from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from http.client import InvalidURL
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from stagecast.errors import HolderFailed, SourceRefused
from stagecast.upstream import REDIRECTS, Opened, Request, explained, open_source
from tests.upstream_server import UpstreamServer

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with UpstreamServer({"/m.bin": CONTENT, "/empty": b""}).running() as server:
        yield server


def ask(uri: str, offset: int = 0, validator: str = "", *, head: bool = False, last: int | None = None) -> Opened:
    return open_source(Request(uri, offset, validator, head, last, 10.0, lambda: None))


def rest(opened: Opened) -> bytes:
    data = opened.body.read()
    opened.body.close()
    return data


def test_a_whole_file(server: UpstreamServer) -> None:
    opened = ask(f"{server.url}/m.bin")
    assert opened.head == (0, len(CONTENT), '"one"', "application/octet-stream")
    assert rest(opened) == CONTENT


def test_the_rest_of_a_file(server: UpstreamServer) -> None:
    opened = ask(f"{server.url}/m.bin", 100, '"one"')
    assert (opened.head.start, opened.head.size, opened.length) == (100, len(CONTENT), len(CONTENT) - 100)
    assert rest(opened) == CONTENT[100:]


def test_a_changed_file_starts_over(server: UpstreamServer) -> None:
    opened = ask(f"{server.url}/m.bin", 100, '"older"')
    assert opened.head.start == 0
    assert rest(opened) == CONTENT


def test_a_weak_validator_is_not_sent_as_a_condition(server: UpstreamServer) -> None:
    server.etag = 'W/"one"'
    opened = ask(f"{server.url}/m.bin", 100, 'W/"one"')
    assert opened.head.start == 100
    opened.body.close()


def test_nothing_is_left_to_ask_for(server: UpstreamServer) -> None:
    opened = ask(f"{server.url}/m.bin", len(CONTENT), '"one"')
    assert (opened.head.start, opened.head.size, opened.length) == (len(CONTENT), len(CONTENT), 0)


def test_a_file_that_shrank_starts_over(server: UpstreamServer) -> None:
    opened = ask(f"{server.url}/m.bin", len(CONTENT) + 5)
    assert opened.head.start == 0
    assert rest(opened) == CONTENT


def test_an_empty_file_has_no_first_byte(server: UpstreamServer) -> None:
    assert ask(f"{server.url}/empty", last=0).head.size == 0


def test_redirects_are_followed_five_times(server: UpstreamServer) -> None:
    server.redirects = {f"/{number}": f"{server.url}/{number + 1}" for number in range(REDIRECTS + 1)}
    server.redirects["/5"] = "/m.bin"
    with pytest.raises(HTTPError, match="infinite loop") as caught:
        ask(f"{server.url}/0")
    caught.value.close()
    assert rest(ask(f"{server.url}/1", 10)) == CONTENT[10:]
    ask(f"{server.url}/3", head=True).body.close()
    assert server.requests[-1][0] == "HEAD"


def test_a_redirect_leads_nowhere_but_to_the_web(server: UpstreamServer) -> None:
    server.redirects["/ftp"] = "ftp://127.0.0.1/x"
    with pytest.raises(URLError, match="unknown url type"):
        ask(f"{server.url}/ftp")
    server.redirects["/file"] = "file:///etc/hostname"
    with pytest.raises(HTTPError, match="not allowed") as caught:
        ask(f"{server.url}/file")
    caught.value.close()


def test_a_local_file_is_known_by_its_state(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(CONTENT)
    opened = ask(path.as_uri())
    assert rest(opened) == CONTENT
    validator = opened.head.validator
    assert rest(ask(path.as_uri(), 100, validator)) == CONTENT[100:]
    os.utime(path, (1, 1))
    opened = ask(path.as_uri(), 100, validator)
    assert opened.head.start == 0
    opened.body.close()


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceRefused, match="not a regular file"):
        ask((tmp_path / "pipe").as_uri())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (URLError(ConnectionRefusedError(111, "refused")), HolderFailed),
        (URLError(TimeoutError()), HolderFailed),
        (URLError(ssl.SSLCertVerificationError("self-signed")), SourceRefused),
        (URLError("unknown url type: ftp"), SourceRefused),
        (FileNotFoundError(2, "gone"), SourceRefused),
        (InvalidURL("no port"), SourceRefused),
        (ConnectionResetError(104, "reset"), HolderFailed),
    ],
)
def test_an_error_says_whether_asking_again_may_help(error: BaseException, kind: type[HolderFailed]) -> None:
    found = explained("https://host/m?signature=secret", error)
    assert type(found) is kind
    assert "secret" not in str(found)
    assert str(found).startswith("holder https://host/m: ")


@pytest.mark.parametrize(("status", "kind"), [(404, SourceRefused), (429, HolderFailed), (503, HolderFailed)])
def test_a_status_says_whether_asking_again_may_help(
    server: UpstreamServer, status: int, kind: type[HolderFailed]
) -> None:
    server.status = status
    with pytest.raises(HTTPError) as caught:
        ask(f"{server.url}/m.bin")
    found = explained("http://host/m", caught.value)
    caught.value.close()
    assert type(found) is kind
    assert f"answers {status}" in str(found)
