"""Flat records in text: JSON objects, `name[Alimentum], food[French]`, and `key: value` lines."""

from __future__ import annotations

import json
import re
from typing import Any

BRACKETED = re.compile(r"([A-Za-z][\w .-]{0,40}?)\s*\[([^\[\]]*)\]")
LINE = re.compile(r"\s*([A-Za-z][\w .-]{0,40}?)\s*[:=]\s*(\S.*?)\s*")


def record_in(text: str) -> dict[str, str] | None:
    """Slot -> value as text; None when the text is no flat record. Nested keys are joined by dots, null is absent."""
    stripped = text.strip()
    if stripped.startswith("{"):
        try:
            value = json.loads(stripped)
        except (ValueError, RecursionError):
            return None
        return _flat(value) if isinstance(value, dict) else None
    pairs = BRACKETED.findall(stripped)
    if len(pairs) >= 2 and not re.sub(r"[\s,;|]+", "", BRACKETED.sub("", stripped)):
        return {key.strip(): value.strip() for key, value in pairs if value.strip()}
    found = [LINE.fullmatch(line) for line in stripped.splitlines() if line.strip()]
    if len(found) >= 2 and all(found):
        return {match[1]: match[2] for match in found if match}
    return None


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    record: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            record.update(_flat(item, f"{name}."))
        elif isinstance(item, list):
            if item and all(isinstance(part, str | int | float) for part in item):
                record[name] = " ".join(map(str, item)).strip("\0")
        elif isinstance(item, bool):
            record[name] = "true" if item else "false"
        elif item is not None and (text := str(item).strip(" \t\r\n\0")):
            record[name] = text
    return record
