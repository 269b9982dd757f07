"""The numbers of an offline W&B run, read from its file.

The file is LevelDB's log format (github.com/google/leveldb, doc/log_format.md) behind a head of 7 bytes: blocks of 32
KiB with records of checksum, length and kind, a long one in several parts. Each record is a protobuf message of
wandb's.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD, PART = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file, whole."""
    assert content[:4] == b":W&B"
    place, unfinished = HEAD, b""
    while place < len(content):
        if BLOCK - place % BLOCK < PART:  # no room for another part
            place += BLOCK - place % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", content[place : place + PART])
        data = content[place + PART : place + PART + length]
        assert checksum == zlib.crc32(bytes([kind]) + data) and len(data) == length
        place += PART + length
        unfinished = data if kind in (FULL, FIRST) else unfinished + data
        if kind in (FULL, LAST):
            yield unfinished


def history(folder: Path) -> dict[int, dict[str, Any]]:
    """Step -> name -> value of the only run below ``folder``."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made as it is imported

    (file,) = folder.rglob("*.wandb")
    found: dict[int, dict[str, Any]] = {}
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found.setdefault(items["_step"], {}).update(items)
    return found
