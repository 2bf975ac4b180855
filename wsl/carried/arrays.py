"""One compressed file of named arrays: what the package carries its data in.

xz (with its own checksum) over a line of JSON, which lists the arrays and whatever belongs to them,
and then their bytes one after another. No pickle, and nothing is read that the line does not announce.
"""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl._core import DataError
from wsl.files.publish import publishing

Arrays = dict[str, npt.NDArray[np.uint8]]
MAX_BYTES = 1 << 30
"""Larger content is refused."""


def write_arrays(path: Path, about: dict[str, Any], arrays: Arrays) -> None:
    """Writes uint8 arrays and what is to be known about them; the same content makes the same bytes."""
    arrays = dict(sorted(arrays.items()))
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    line = json.dumps({"arrays": shapes, "about": about}, ensure_ascii=False, sort_keys=True)
    content = line.encode() + b"\n" + b"".join(array.tobytes() for array in arrays.values())
    packed = lzma.compress(content, preset=9 | lzma.PRESET_EXTREME, check=lzma.CHECK_CRC64)
    with publishing(path) as temporary:
        temporary.write_bytes(packed)


def read_arrays(path: Path) -> tuple[dict[str, Any], Arrays]:
    """What `write_arrays` wrote; DataError where the file is damaged."""
    try:
        content = _unpack(path)
        end = content.index(b"\n")
        head = json.loads(content[:end])
        arrays, at = {}, end + 1
        for name, shape in head["arrays"].items():
            size = math.prod(shape)
            if min(shape, default=1) < 0 or at + size > len(content):
                raise ValueError(f"array {name!r} of shape {shape} is not all there")
            arrays[name] = np.frombuffer(content, np.uint8, size, at).reshape(shape)
            at += size
        return head["about"], arrays
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the carried data are damaged ({error}); install the package again"
        ) from None


def _unpack(path: Path) -> bytes:
    opener = lzma.LZMADecompressor()
    content = opener.decompress(path.read_bytes(), MAX_BYTES)
    if not opener.eof:
        raise ValueError("it is cut short or too large")
    return content
