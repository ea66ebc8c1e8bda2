"""The run file's YAML: read as a mapping, where a key stands, and faults that its parser lets pass."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import ConfigError


def read_mapping(text: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The tree and the values of a run file's text. Raises: ConfigError naming the line."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        fault = key_fault(node, (), set())
        raw = yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"{name}: lists or mappings are nested too deep; a run file needs four levels") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    if raw is None:
        raise ConfigError(
            f"{name} is empty; a run file is a mapping with name, task and data: 'shoestring init DATA_FILE' writes one"
        )
    if not isinstance(raw, dict):
        raise ConfigError(f"{name}: a run file is a mapping with name, task and data; this holds {type(raw).__name__}")
    if fault:
        raise ConfigError(f"{name}:{fault}")
    return node, raw


def key_fault(node: Any, above: tuple[Any, ...], checked: set[int]) -> str | None:
    """Line and fault of a key given twice, or of an alias that stands inside what it means."""
    if not isinstance(node, yaml.CollectionNode):
        return None
    line = node.start_mark.line + 1
    if any(node is outer for outer in above):
        return f"{line}: what begins here contains itself through an alias (*); write it out"
    if id(node) in checked:  # aliases of aliases: each thing once
        return None
    checked.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                return f"{key.start_mark.line + 1}: key {key.value!r} is given twice; keep one"
            seen.add(key.value)
    inner = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
    return next((fault for part in inner if (fault := key_fault(part, (*above, node), checked))), None)


def line_of(node: Any, location: tuple[Any, ...]) -> int:
    """Line (from 1) of the deepest part of location that the YAML holds."""
    line = 1
    for step in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == step), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line
