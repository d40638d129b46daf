"""Files that are there whole or not at all, and still there after the machine has lost its power."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name, and give it its own when it is on disk; return when that is, too."""
    partial = path.with_name(f".{path.name}.partial")
    if isinstance(content, str):
        partial.write_text(content, encoding="utf-8")
    else:
        partial.write_bytes(content)
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON to be read by people too."""
    write_whole(path, json.dumps(json_numbers(values), indent=2) + "\n")


def json_number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: they are null there."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def json_numbers(values: Any) -> Any:
    """The same for all numbers in mappings and lists."""
    if isinstance(values, dict):
        return {key: json_numbers(value) for key, value in values.items()}
    if isinstance(values, list):
        return [json_numbers(value) for value in values]
    return json_number(values)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
