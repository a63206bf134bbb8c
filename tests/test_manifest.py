from __future__ import annotations

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from stagecast.errors import InvalidManifest, InvalidName
from stagecast.manifest import Manifest, ManifestFile, check, check_name, check_path, decode, encode, file_digest
from tests.sample import file_of, manifest_of

paths = st.lists(st.text("abc-_.", min_size=1, max_size=5).filter(lambda part: part not in {".", ".."}), min_size=1)
contents = st.dictionaries(paths.map("/".join), st.binary(max_size=40), min_size=1, max_size=5)


@given(contents, st.integers(1, 50))
def test_a_manifest_survives_the_wire(files: dict[str, bytes], piece_size: int) -> None:
    manifest = manifest_of("m", files, piece_size=piece_size)
    check(manifest)
    assert decode(encode(manifest)) == manifest
    assert decode(encode(manifest)).digest == manifest.digest
    assert manifest.size == sum(map(len, files.values()))


@given(contents, contents)
def test_digests_are_equal_exactly_for_equal_files(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    same = manifest_of("one", one, piece_size=7).digest == manifest_of("other", other, piece_size=7).digest
    assert same == (one == other)


def test_fields_of_a_later_version_are_ignored() -> None:
    data = msgspec.json.decode(encode(manifest_of("m", {"a": b"x"})))
    data["licence"] = data["files"][0]["comment"] = "new"
    assert decode(msgspec.json.encode(data)).files[0].path == "a"


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_is_raised(data: bytes) -> None:
    with pytest.raises(InvalidManifest):
        decode(data)


@given(st.data())
def test_a_manifest_cut_off_anywhere_is_refused(data: st.DataObject) -> None:
    whole = encode(manifest_of("m", {"a": b"x" * 10, "b/c": b""}, piece_size=4))
    with pytest.raises(InvalidManifest):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../up", "a/../../b", "a//b", "./a", "a/.", "a/", "nul\0"])
def test_paths_that_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(InvalidManifest, match="does not stay inside"):
        check_path("m", path)


@pytest.mark.parametrize("path", ["a", "a/b", "..a", "a..b/...", ".hidden", "a?b#c%d", "ü/ 模型"])
def test_odd_paths_are_allowed(path: str) -> None:
    check_path("m", path)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\nb", " a", "a ", "x" * 201, "\udcff", "ü" * 101])
def test_names_that_cannot_be_file_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "llama-3.1:8b", "a b", "模型", "x" * 200, "a*b?"])
def test_odd_names_are_allowed(name: str) -> None:
    check_name(name)


def changed(manifest: Manifest, **changes: object) -> Manifest:
    return msgspec.structs.replace(manifest, **changes)


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (changed(manifest_of("m", {"a": b"x"}), piece_size=0), "piece_size"),
        (changed(manifest_of("m", {"a": b"x"}), files=()), "no files"),
        (changed(manifest_of("m", {"a": b"x", "b": b"y"}), single=True), "single"),
        (changed(manifest_of("m", {"a": b"x"}), files=(file_of("b", b"", 9), file_of("a", b"", 9))), "sorted"),
        (changed(manifest_of("m", {"a": b"x"}), files=(file_of("a", b"", 9),) * 2), "twice"),
        (changed(manifest_of("m", {"a": b"x" * 10}), piece_size=5), "pieces"),
        (changed(manifest_of("m", {"a": b"x"}), files=(ManifestFile(path="a", size=-1, digest="", pieces=()),)), "pie"),
        (
            changed(manifest_of("m", {"a": b"x"}), files=(ManifestFile(path="a", size=1, digest="", pieces=("zz",)),)),
            "not hex",
        ),
        (
            changed(
                manifest_of("m", {"a": b"x"}),
                files=(ManifestFile(path="a", size=1, digest="0" * 64, pieces=("0" * 64,)),),
            ),
            "does not follow",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(broken: Manifest, why: str) -> None:
    with pytest.raises(InvalidManifest, match=why):
        check(broken)


def test_the_digest_of_a_file_is_what_the_docstring_says() -> None:
    content = b"0123456789"
    hashed = blake3(content[:8]).digest() + blake3(content[8:]).digest() + (10).to_bytes(8, "little")
    assert (
        file_of("a", content, 8).digest
        == blake3(hashed).hexdigest()
        == file_digest(file_of("a", content, 8).pieces, 10)
    )
