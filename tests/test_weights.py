"""What a file of weights says of its own length, in both formats, cut off at any byte."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest

from stagecast.adoption import adopt
from stagecast.errors import InvalidManifest
from stagecast.store import Store
from stagecast.weights import told_missing
from tests.sample import fill, lay_out, manifest_of


def safetensors(length: int = 40) -> bytes:
    table = {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [10], "data_offsets": [0, length]}}
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(length)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(kind: int = 8) -> bytes:
    entries = [
        text("general.alignment") + struct.pack("<II", 4, 64),
        text("general.name") + struct.pack("<I", 8) + text("owl"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5),
        text("flag") + struct.pack("<IB", 7, 1),
    ]
    tensors = [
        text("first") + struct.pack("<I2Q", 2, 32, 2) + struct.pack("<IQ", kind, 0),
        text("last") + struct.pack("<IQ", 1, 64) + struct.pack("<IQ", kind, 128),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
    return head + bytes(-len(head) % 64) + bytes(128 + 68)  # two blocks of 34 bytes in each


@pytest.mark.parametrize(("name", "whole"), [("w.safetensors", safetensors()), ("w.GGUF", gguf())])
def test_cut_off_anywhere_it_is_found_and_whole_or_longer_it_is_not(tmp_path: Path, name: str, whole: bytes) -> None:
    path = tmp_path / name
    for length in (len(whole), len(whole) + 1):
        path.write_bytes(whole + b"." * (length - len(whole)))
        assert told_missing(path) == ""
    for length in range(9, len(whole)):
        path.write_bytes(whole[:length])
        assert told_missing(path), length
    assert f"it has {len(whole) - 1} of the {len(whole)} bytes" in told_missing(path)
    path.write_bytes(whole[:20])
    assert told_missing(path) == "it ends after 20 bytes, within its own header"


@pytest.mark.parametrize("name", ["w.safetensors", "w.gguf", "w.bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"weights", b"{}" * 20, bytes(100), b"\xff" * 100, b"GGUF" + bytes([1, 0, 0, 0]) * 9, safetensors()[:9]],
)
def test_what_is_no_such_file_is_let_be(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    is_cut_off = name == "w.safetensors" and content == safetensors()[:9]
    assert bool(told_missing(tmp_path / name)) == is_cut_off


def test_of_a_tensor_of_a_type_to_come_only_its_beginning_is_known(tmp_path: Path) -> None:
    path, whole = tmp_path / "w.gguf", gguf(kind=99)
    path.write_bytes(whole[:-68])
    assert told_missing(path) == ""
    path.write_bytes(whole[:-69])
    assert told_missing(path)


def test_a_model_that_was_cut_off_is_not_adopted_and_is_once_it_is_whole(tmp_path: Path) -> None:
    lay_out(tmp_path / "m", {"model.safetensors": safetensors()[:-1], "config.json": b"{}"})
    said = r"model.safetensors was cut off: it has \d+ of the \d+ bytes that its own header tells of; copy it again, or"
    hashed: list[int] = []
    with pytest.raises(InvalidManifest, match=said):
        adopt("m", tmp_path / "m", None, hashed.append, threading.Event())
    assert hashed == [], "nothing is read for it"
    (tmp_path / "m" / "model.safetensors").write_bytes(safetensors())
    assert adopt("m", tmp_path / "m", None, hashed.append, threading.Event()).manifest.size == len(safetensors()) + 2


def test_a_published_model_that_was_cut_off_is_left_to_a_verify(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", tmp_path / "data")
    contents = {"w.safetensors": safetensors()}
    wanted = manifest_of("m", contents)
    with store.partial(wanted) as partial:
        fill(partial, contents)
        partial.publish()
    (store.models / "m" / "w.safetensors").write_bytes(safetensors()[:-1])
    assert store.manifest("m").digest != wanted.digest
    expected = store.expected("m")
    assert expected is not None
    assert expected.digest == wanted.digest, "so that it can be repaired"
