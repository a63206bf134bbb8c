"""Weights: whether a file is as long as its own header says. A copy that was cut off is found before it is believed.

Formats: safetensors (a JSON table of byte ranges) and GGUF 2 and 3 (tensors with offsets, after typed metadata). What
cannot be read as either is nobody's business here: a backend will say so.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

_LONGEST_TABLE: Final = 100_000_000
"""Bytes of a safetensors header at most, by its own reader."""
_MOST: Final = 1_000_000
"""Tensors or entries of a GGUF file beyond which its header is none."""
_FIXED: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a GGUF value by its type; strings and lists have their own length."""
_STRING, _LIST = 8, 9
_BLOCKS: Final = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
}  # fmt: skip
"""(values, bytes) of a block of a GGUF tensor by its type; of a later type only where it begins is known."""


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


class _CutOff(Exception):
    """The file ends within its header."""


def told_missing(path: Path) -> str:
    """Return how a file of weights shows that it was cut off, or nothing. Raises `OSError`."""
    read = {".safetensors": _safetensors, ".gguf": _gguf}.get(path.suffix.lower())
    if read is None:
        return ""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            wanted = read(file, size)
        except _CutOff:
            return f"it ends after {size:,} bytes, within its own header"
    return f"it has {size:,} of the {wanted:,} bytes that its own header tells of" if wanted > size else ""


def _safetensors(file: BinaryIO, size: int) -> int:
    """Return the bytes that the header tells of; 0 where it is none."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > _LONGEST_TABLE:
        return 0
    if 8 + length > size:
        raise _CutOff
    file.seek(8)
    ends = [0]
    with suppress(msgspec.MsgspecError):
        table = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        tensors = (each for name, each in table.items() if name != "__metadata__")
        ends += [msgspec.json.decode(each, type=_Tensor).data_offsets[1] for each in tensors]
    return 8 + length + max(ends)


def _gguf(file: BinaryIO, size: int) -> int:
    """Return the bytes that the header tells of; 0 where it is none."""
    if file.read(4) != b"GGUF" or size < 8 or _number(file, "<I") not in {2, 3}:
        return 0
    tensors, entries = _number(file, "<Q"), _number(file, "<Q")
    if max(tensors, entries) > _MOST:
        return 0
    alignment = 32
    for _ in range(entries):
        key, kind = _string(file, size), _number(file, "<I")
        if key == b"general.alignment" and kind == 4:
            alignment = max(1, _number(file, "<I"))
        else:
            _pass_over(file, kind, size)
    ends = [0]
    for _ in range(tensors):
        _string(file, size)
        shape = [_number(file, "<Q") for _ in range(min(_number(file, "<I"), 8))]
        values, taken = _BLOCKS.get(_number(file, "<I"), (1, 0))
        ends.append(_number(file, "<Q") + prod(shape) // values * taken)
    return -(-file.tell() // alignment) * alignment + max(ends) if tensors else file.tell()


def _pass_over(file: BinaryIO, kind: int, size: int) -> None:
    if kind == _STRING:
        _string(file, size)
    elif kind == _LIST:
        inner, count = _number(file, "<I"), _number(file, "<Q")
        if inner in _FIXED:
            _skip(file, count * _FIXED[inner], size)
        else:
            for _ in range(count):
                _pass_over(file, inner, size)
    else:
        _skip(file, _FIXED.get(kind, size), size)


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if count > size - file.tell():
        raise _CutOff
    file.seek(count, os.SEEK_CUR)


def _string(file: BinaryIO, size: int) -> bytes:
    length = _number(file, "<Q")
    if length > size - file.tell():
        raise _CutOff
    return file.read(length)


def _number(file: BinaryIO, form: str) -> int:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise _CutOff
    return int(struct.unpack(form, data)[0])
