from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stagecast.address import local_address
from stagecast.errors import BadInput, InvalidName, SourceRefused, Unknown
from stagecast.gallery import Source, SourceFile, parse_index, resolve
from tests.upstream_server import UpstreamServer

DIGEST = hashlib.sha256(b"weights").hexdigest()
INDEX = f"""
- &common
  name: minilm
  description: an embedding model
  urls: [https://host/readme]
  tags: {{any: thing}}
  files:
    - filename: sub/tokenizer.json
      uri: tokenizer file.json
    - filename: model.safetensors
      sha256: {DIGEST.upper()}
      uri: https://host/m%20odd.safetensors?x=1
- <<: *common
  name: 1.5
  files:
    - {{filename: m, uri: m, sha256: {"1" * 64}}}
- name: nothing
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "index.yaml"
    path.write_text(INDEX)
    return path


def test_an_entry_names_its_files_sorted(index: Path) -> None:
    source = resolve("minilm", str(index))
    assert source == Source(
        "minilm",
        (
            SourceFile("model.safetensors", "https://host/m%20odd.safetensors?x=1", DIGEST),
            SourceFile("sub/tokenizer.json", local_address(index.parent / "tokenizer file.json")),
        ),
    )
    assert source.size is None
    assert resolve("minilm", index.as_uri(), name="mine").model == "mine"


def test_an_index_from_the_web() -> None:
    with UpstreamServer({"/g/index.yaml": INDEX.encode()}).running() as server:
        source = resolve("minilm", f"{server.url}/g/index.yaml")
        assert source.files[1].uri == f"{server.url}/g/tokenizer%20file.json"
        with pytest.raises(SourceRefused, match="answers 404"):
            resolve("minilm", f"{server.url}/gone.yaml")


def test_scalars_are_text(index: Path) -> None:
    assert resolve("1.5", str(index)).files[0].sha256 == "1" * 64


def test_json_is_read_too(tmp_path: Path) -> None:
    entries = [{"name": "m", "files": [{"filename": "f", "uri": "/x/f", "sha256": f"sha256:{DIGEST}"}]}]
    (tmp_path / "index.json").write_text(json.dumps(entries, indent="\t"))
    assert resolve("m", str(tmp_path / "index.json")).files == (SourceFile("f", "file:///x/f", DIGEST),)


def test_an_unknown_entry_names_the_known(index: Path) -> None:
    with pytest.raises(Unknown, match=r"no gallery entry 'minilm-2' is known; known: 1\.5, minilm, nothing"):
        resolve("minilm-2", str(index))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- name: a\n  files: [\n", "not valid YAML at line 3, column 1"),
        ("a: b", "not a list of entries"),
        ("", "not a list of entries"),
        ("- name: a\n- description: b", "entry 2 has no name"),
        ("- just text", "entry 1 has no name"),
        ("\x00", "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
        ("- !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_malformed_index_names_the_place(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"the index i.*{why}"):
        parse_index(text.encode(), "i")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ("[]", "lists no files"),
        ("[x]", "not a file with 'filename' and 'uri'"),
        ("[{filename: a}]", "needs a 'filename' and a 'uri'"),
        ("[{filename: [a], uri: b}]", "both text"),
        ("[{filename: ../a, uri: b}]", "does not stay inside"),
        ("[{filename: /a, uri: b}]", "does not stay inside"),
        ("[{filename: a/../../b, uri: b}]", "does not stay inside"),
        ("[{filename: .git/hooks/x, uri: b}]", ".git folder"),
        ('[{filename: "a\\nb", uri: b}]', "cannot be printed"),
        ("[{filename: a, uri: b, sha256: abc}]", "64 hexadecimal digits"),
        ("[{filename: a, uri: 'oci://host/x'}]", "oci:// is not supported; use http://"),
        ("[{filename: a, uri: b}, {filename: a, uri: c}]", "names a file twice"),
        ("[{filename: a, uri: b}, {filename: a/c, uri: c}]", "folder that is a file"),
    ],
)
def test_a_malformed_entry_says_what_is_wrong(tmp_path: Path, files: str, why: str) -> None:
    (tmp_path / "index.yaml").write_text(f"- name: m\n  files: {files}\n")
    with pytest.raises(BadInput, match=why):
        resolve("m", str(tmp_path / "index.yaml"))


@pytest.mark.parametrize("name", ["../m", ".hidden", "a/b", " x"])
def test_a_name_that_cannot_be(index: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        resolve("minilm", str(index), name=name)
    index.write_text(f"- name: {json.dumps(name)}\n  files: [{{filename: a, uri: b}}]")
    with pytest.raises(InvalidName):
        resolve(name, str(index))


def test_one_file_by_its_url() -> None:
    source = resolve("https://host/x/a%20b%23.gguf?download=true", sha256=DIGEST)
    uri = "https://host/x/a%20b%23.gguf?download=true"
    assert source == Source("a b#.gguf", (SourceFile("a b#.gguf", uri, DIGEST),), single=True)
    assert resolve("https://host/x", name="m").files[0].path == "m"
    with pytest.raises(InvalidName):
        resolve("https://host/")


def test_a_gallery_does_not_hide_urls_and_paths(index: Path) -> None:
    assert resolve("https://host/m.gguf", str(index)).single
    assert resolve(str(index), str(index)).model == "index.yaml"


def test_a_file_or_folder_by_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "m #1%"
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "sub" / ".git" / "config").touch()
    (folder / "sub" / "b?").write_bytes(b"12")
    (folder / "a").write_bytes(b"1")
    source = resolve(str(folder))
    assert [(file.path, file.size) for file in source.files] == [("a", 1), ("sub/b?", 2)]
    assert (source.model, source.single, source.size) == ("m #1%", False, 3)
    single = resolve(local_address(folder / "a"))
    assert (single.model, single.single, single.size) == ("a", True, 1)


def test_what_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="give --gallery URL"):
        resolve("minilm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no files"):
        resolve(str(tmp_path / "empty"))


def test_one_sha256_is_for_one_file(index: Path) -> None:
    with pytest.raises(BadInput, match="has 2 files, so one SHA-256"):
        resolve("minilm", str(index), sha256=DIGEST)
    with pytest.raises(BadInput, match="is published with SHA-256 1111"):
        resolve("1.5", str(index), sha256=DIGEST)
    with pytest.raises(BadInput, match="64 hexadecimal digits"):
        resolve("http://host/m", sha256="12")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
