"""`shoestring explain`: what a key of the run file means, and where a run's value came from."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from .output import emit, say
from .running import is_changed, open_run, result_of, value_text
from .tables import table

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minItems": "at least {} entries",
    "pattern": "matching {}",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the run file, from the schema."""

    name: str  # dotted
    type: str
    default: Any
    is_required: bool
    is_section: bool
    description: str
    limits: str


def keys_of(schema: dict[str, Any], section: dict[str, Any] | None = None, prefix: str = "") -> Iterator[Key]:
    """Every key of the run file, sections before what they hold."""
    section = section or schema
    for name, raw in section["properties"].items():
        target, variants = _resolved(schema, raw)
        dotted = prefix + name
        inner = next((v for v in variants if "properties" in v), None)
        yield Key(
            dotted,
            " or ".join(dict.fromkeys(_type_text(v) for v in variants)),
            raw.get("default"),
            name in section.get("required", []),
            inner is not None and target,
            raw.get("description") or (inner or {}).get("description", ""),
            ", ".join(LIMITS[k].format(v[k]) for v in variants for k in LIMITS if k in v),
        )
        if inner is not None:
            yield from keys_of(schema, inner, dotted + ".")


def _resolved(schema: dict[str, Any], raw: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """(whether it is a section, the alternatives) with references and lists of sections followed."""
    alternatives = raw.get("anyOf") or raw.get("allOf") or [raw]
    found = []
    is_section = True
    for alternative in alternatives:
        if "$ref" in alternative:
            alternative = {**schema["$defs"][alternative["$ref"].rsplit("/", 1)[1]], **alternative}
        items = alternative.get("items", {})
        if "$ref" in items:
            is_section = False
            inner = schema["$defs"][items["$ref"].rsplit("/", 1)[1]]
            alternative = {**alternative, "properties": inner["properties"], "required": inner.get("required", [])}
        found.append(alternative)
    return is_section, found


def _type_text(variant: dict[str, Any]) -> str:
    if "enum" in variant:
        return "one of " + ", ".join(str(v) for v in variant["enum"])
    if "const" in variant:
        return f"{variant['const']!r}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "empty"}
    kind = variant.get("type", "value")
    if kind == "array":
        entries = "sections" if "properties" in variant else _type_text(variant["items"])
        return f"list of {entries.replace('one of', 'any of', 1)}"
    if kind == "object" or "properties" in variant:
        return "section"
    return words.get(kind, kind)


def command(key: str | None, run_target: str | None, schema: bool, runs_dir: Path, is_json: bool) -> int:
    """Dispatch: the schema, the list, or one key."""
    from ..config import json_schema

    document = json_schema()
    if schema:
        emit(document)
        return 0
    keys = {k.name: k for k in keys_of(document)}
    if key is None:
        _list(list(keys.values()), is_json)
        return 0
    key = ".".join(part for part in key.split(".") if not part.isdigit())  # an entry of a list
    found = keys.get(key) or _by_last_part(key, keys)
    derived = run_target is not None and found is None
    if found is None and not (derived or key in _setting_names()):
        raise BadInput(unknown(key, keys))
    told: dict[str, Any] = dataclasses.asdict(found) if found else {"name": key, "description": DERIVED}
    if run_target is not None:
        run = open_run(run_target, runs_dir)
        told["run"] = value_in_run(run, run_target, found.name if found else key)
        if found and found.name == HAZARD:
            told["run"]["hazards"] = _hazards(run)
    if found is None and not told.get("run", {}).get("rungs") and key not in _setting_names():
        raise BadInput(unknown(key, keys))
    if is_json:
        emit(told)
    else:
        held = [k for k in keys.values() if found and k.name.rpartition(".")[0] == found.name]
        _show(told, found, held)
    return 0


HAZARD = "market.interruptions_per_hour"


def _hazards(run: Any) -> list[dict[str, Any]]:
    """The range, what launches saw of each seller's machines, and the range after that."""
    from datetime import UTC, datetime

    from ..stages.spotting import hazards_of, hazards_told

    return hazards_told(hazards_of(run), datetime.now(UTC).date())


DERIVED = "Derived when the run is planned; not a key of the run file."


def unknown(key: str, keys: dict[str, Key]) -> str:
    """The message for a key there is not, with the nearest ones."""
    last_parts = {name.rsplit(".", 1)[-1]: name for name in keys}
    near = difflib.get_close_matches(key, keys, n=3, cutoff=0.6)
    near += [last_parts[k] for k in difflib.get_close_matches(key.rsplit(".", 1)[-1], last_parts, n=2, cutoff=0.7)]
    guess = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    return f"{key!r} is not a key of the run file{guess} 'shoestring explain' lists them all"


def _by_last_part(key: str, keys: dict[str, Key]) -> Key | None:
    """`lora_rank` for train.lora_rank, where only one key ends so."""
    matches = [k for name, k in keys.items() if name.rsplit(".", 1)[-1] == key]
    return matches[0] if len(matches) == 1 else None


def _setting_names() -> set[str]:
    from ..records import TrainSettings

    return {field.name for field in dataclasses.fields(TrainSettings)} - {"reasons"}


def _list(keys: list[Key], is_json: bool) -> None:
    if is_json:
        emit({"keys": [dataclasses.asdict(key) for key in keys]})
        return
    say(_meanings(keys))


def _meanings(keys: Sequence[Key]) -> str:
    rows = [(key.name, _first_sentence(key.description)) for key in keys]
    return table(("key", "meaning"), rows, flexible=1)


def _first_sentence(text: str) -> str:
    return text.split("\n")[0].split("; ")[0].rstrip(".")


def _default_text(key: Key) -> str:
    if key.is_section:
        return ""
    if key.default is None and key.name.startswith("train."):
        return "derived"
    return value_text(key.default)


def _show(told: dict[str, Any], key: Key | None, held: Sequence[Key]) -> None:
    say(told["name"])
    say(f"  {told['description']}")
    if key is not None:
        say(f"  type: {key.type}{f' ({key.limits})' if key.limits else ''}")
        if not key.is_section:
            say(f"  default: {'none, it must be given' if key.is_required else _default_text(key)}")
    if held:
        say()
        say(_meanings(held))
    run = told.get("run")
    if run is None:
        return
    say()
    if "value" in run:
        say(f"In {run['folder']}: {run['value_text']} ({run['origin']})")
    else:
        say(f"In {run['folder']}:")
    for rung in run["rungs"]:
        reason = f": {rung['reason']}" if rung["reason"] else ""
        say(f"  {rung['model']} uses {value_text(rung['value'])}{reason}")
    for known in run.get("hazards", ()):
        say(f"  {known['words']} [{known['prior']['source']}]")
    if run["hint"]:
        say(f"  {run['hint']}")


def value_in_run(run: Any, target: str, key: str) -> dict[str, Any]:
    """The configured value of key, and what each planned rung made of it."""
    told: dict[str, Any] = {"folder": str(run.folder), "rungs": [], "hint": ""}
    value: Any = run.config
    default: Any = None
    parts = key.split(".")
    for part in parts:
        if not hasattr(value, part):
            break
        fields = type(value).model_fields
        default = fields[part].get_default(call_default_factory=True) if part in fields else None
        value = getattr(value, part)
    else:
        if not hasattr(value, "model_fields"):
            told["value"] = value
            told["value_text"] = value_text(value)
            told["origin"] = "the default" if value == default else "from the run file"
    plan = result_of(run, "plan.json")
    name = parts[-1]
    for rung in (plan or {}).get("rungs", []):
        settings = rung["settings"]
        if name in settings and name != "reasons":
            told["rungs"].append(
                {"model": rung["model"], "value": settings[name], "reason": settings["reasons"].get(name, "")}
            )
    if plan is None and name in _setting_names():
        told["hint"] = f"not planned yet; 'shoestring plan {target}' derives it and says why"
    elif told["rungs"] and is_changed(run):
        told["hint"] = f"planned before the run file was changed; 'shoestring plan {target}' plans anew"
    return told
