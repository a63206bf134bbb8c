from __future__ import annotations

from pathlib import Path

import pytest

from stagecast.address import address, is_local, last_name, local_path, shown
from stagecast.errors import BadInput


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("http://host/a b.gguf", "http://host/a%20b.gguf"),
        ("HTTPS://host:8443/a%20b%23c%3Fd.gguf?sig=a%2Fb&x=1", "https://host:8443/a%20b%23c%3Fd.gguf?sig=a%2Fb&x=1"),
        ("http://host/c#.bin", "http://host/c%23.bin"),
        ("http://host/100%.bin", "http://host/100%25.bin"),
        ("http://host/é.bin", "http://host/%C3%A9.bin"),
        ("http://host", "http://host/"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("file:///a/b%20c", "file:///a/b%20c"),
        ("file://localhost/a", "file:///a"),
        ("/a/100% #1?.bin", "file:///a/100%25%20%231%3F.bin"),
    ],
)
def test_an_address_can_be_asked_for_as_it_stands(text: str, uri: str) -> None:
    assert address(text) == uri
    assert address(uri) == uri


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an address"),
        ("http://host/a\nb", "not an address"),
        ("ftp://host/x", "ftp:// is not supported; use http://, https://, file:// or a path"),
        ("huggingface://owner/repository/file", "huggingface:// is not supported"),
        ("http:///x", "needs a plain host"),
        ("http://user:password@host/x", "needs a plain host"),
        ("http://host:port/x", "not a URL"),
        ("http://[::1/x", "not a URL"),
        ("file://relative/x", "absolute path"),
    ],
)
def test_what_cannot_be_fetched_says_why(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=why.replace("(", r"\(")):
        address(text)


def test_a_relative_path_is_taken_from_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert address("m/a b#.bin", "http://host/x/index.yaml?y=1") == "http://host/x/m/a%20b%23.bin"
    assert address("/m.bin", "http://host/x/index.yaml") == "http://host/m.bin"
    assert address("m.bin", "file:///x/index.yaml") == "file:///x/m.bin"
    monkeypatch.chdir(tmp_path)
    assert local_path(address("m.bin")) == tmp_path / "m.bin"


@pytest.mark.parametrize("text", ["file:///etc/passwd", "//host/x"])
def test_a_remote_index_does_not_name_local_files(text: str) -> None:
    with pytest.raises(BadInput, match=r"stands in an index from http://host/index\.yaml;"):
        address(text, "http://host/index.yaml?key=secret")


def test_names_and_what_people_see() -> None:
    assert last_name("https://host/a/b%20c.gguf?download=true") == "b c.gguf"
    assert last_name("https://host/") == ""
    assert last_name("file:///a/b%3Fc") == "b?c"
    assert shown("https://host/a?signature=secret") == "https://host/a"
    assert shown("file:///a/b%20c") == "/a/b c"
    assert is_local("file:///a")
    assert not is_local("http://a/")
