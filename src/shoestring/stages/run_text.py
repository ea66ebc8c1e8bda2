"""Values of a run file changed in its text: every other line, and the comments, stay as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from ..config import RunConfig, parse_run_file
from ..errors import ConfigError

Path = tuple[str, ...]


def with_values(text: str, values: Mapping[Path, Any], wanted: RunConfig, name: str = "run file") -> str:
    """text with the values at these keys, of a section or above; None stands for what is not given.

    Raises: ConfigError where the text cannot be changed so that it says what is wanted, and no more.
    """
    changed = text
    for path, value in values.items():
        changed = _with_value(changed, path, value)
    try:
        is_right = parse_run_file(changed, name) == wanted
    except ConfigError:
        is_right = False
    if not is_right:
        keys = ", ".join(f"{'.'.join(path)}: {_flow(value)}" for path, value in values.items())
        raise ConfigError(f"{name}: it is written in a way that cannot be changed from outside; write into it: {keys}")
    return changed


def _with_value(text: str, path: Path, value: Any) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    node = root
    for depth, key in enumerate(path):
        found = _entry(node, key)
        if found is None:
            return text if value is None else _added(text, root, node, path[depth:], value)
        node = found
    return _replaced(text, node, _flow(value))


def _entry(node: Any, key: str) -> Any:
    """The value of a key of a mapping."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((value for name, value in pairs if name.value == key), None)


def _replaced(text: str, node: Any, value: str) -> str:
    start = node.start_mark.index
    before = " " if start and text[start - 1] == ":" else ""
    return f"{text[:start]}{before}{value}{text[_end(node) :]}"


def _end(node: Any) -> int:
    """Where the text of a value ends; of a block the parser says where the next thing begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _added(text: str, root: Any, node: Any, path: Path, value: Any) -> str:
    """A key that node lacks: at the end of the file, or first in its section."""
    for key in reversed(path[1:]):
        value = {key: value}
    entry = f"{path[0]}: {_flow(value)}"
    if node is root:
        return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{entry}\n"
    if not isinstance(node, yaml.MappingNode):
        return _replaced(text, node, f"{{{entry}}}")
    if node.flow_style:
        at = node.start_mark.index + 1
        return f"{text[:at]}{entry}{', ' if node.value else ''}{text[at:]}"
    at = node.value[0][0].start_mark.index
    return f"{text[:at]}{entry}\n{' ' * node.start_mark.column}{text[at:]}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else json.dumps(value)
