"""The house rules: who may import whom, what may be heavy, how many options, what is exported."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoestring
from shoestring.config import json_schema

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "shoestring"

# Layers, lowest first. A part may import lower layers, itself, and what ALSO names.
LAYERS: list[set[str]] = [
    {"errors", "units", "messages", "versions"},
    {"records", "secrets"},
    {"files", "sections", "yaml_lines"},
    {"task"},
    {"config"},
    {"data", "evaluate", "decide", "ladder", "plan", "market", "ledger", "embedded", "demo", "runfolder", "live"},
    {"train", "serve", "launch", "imports", "evaluate.generation"},
    {"stages", "recipe", "report"},
    {"web"},
    {"cli"},
    {"__main__"},
]
ALSO = {
    ("decide", "evaluate"),  # arms are scored where they are made
    ("data", "evaluate"),  # synthesis compares free text by a metric
    ("market", "plan"),  # offers go by the names and the memory of the GPU table
    ("ladder", "decide"),  # the verdict, learning curves
    ("ladder", "evaluate"),  # the level of a rung's interval
    ("ladder", "embedded"),  # the family is written out as rungs
    ("train", "embedded"),
    ("launch", "train"),  # where models lie
    ("serve", "train"),
    ("serve", "imports"),  # a fine-tuning job of a client is read as a finished one is
    ("serve", "evaluate.generation"),
    ("evaluate.generation", "train"),
    ("stages", "recipe"),
    ("recipe", "stages"),
    ("recipe", "report"),
}
ENGINE = {"torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers", "safetensors"}
ENGINE_HOMES = ("train", "serve", "evaluate.generation")
HEAVY = ENGINE | {"datasets", "fsspec", "huggingface_hub", "sklearn", "scipy", "pyarrow", "pandas", "rich"}
NETWORK = {"urllib", "http", "socket", "ssl", "requests", "httpx", "httpx2", "aiohttp", "huggingface_hub", "fsspec"}
NETWORK_HOMES = (
    "market",
    "launch",
    "data",
    "serve",
    "web",
    "cli.bench_serve",
    "decide.client",
    "train.base",
    "train.locate",
    "train.remote",
)
NETWORK_HARMLESS = {"urllib.parse", "urllib.error"}
MAX_LINES = 400
MAX_RECIPE_LINES = 150
MAX_OPTIONS = 10


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Dotted name below shoestring -> syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found["" if name == "__init__" else name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_package(name: str) -> bool:
    return (PACKAGE / Path(*name.split(".")) / "__init__.py").is_file() if name else True


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(name: str) -> Iterator[tuple[str, bool, int]]:
    """(imported module in full, whether at module level, line) of one of our modules; type checking apart."""

    def visit(node: ast.AST, at_top: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, at_top, child.lineno
            elif isinstance(child, ast.ImportFrom):
                base = absolute(name, child)
                for alias in child.names:
                    inner = f"{base}.{alias.name}"
                    is_module = inner.removeprefix("shoestring.") in modules()
                    yield (inner if is_module else base), at_top, child.lineno
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, at_top and not inside)

    yield from visit(modules()[name], True)


def absolute(name: str, node: ast.ImportFrom) -> str:
    """The module an import-from names, relative dots resolved."""
    if not node.level:
        return node.module or ""
    parts = ["shoestring", *name.split(".")] if name else ["shoestring"]
    drop = node.level - (1 if is_package(name) else 0)
    parts = parts[: len(parts) - drop]
    return ".".join([*parts, *(node.module.split(".") if node.module else [])])


def part_of(module: str) -> str:
    """The layered part a dotted name (below shoestring) belongs to."""
    if module.startswith("evaluate.generation"):
        return "evaluate.generation"
    return module.split(".")[0]


def layer(part: str) -> int:
    return next((i for i, parts in enumerate(LAYERS) if part in parts), -1)


def starts(module: str, homes: tuple[str, ...]) -> bool:
    return any(module == home or module.startswith(home + ".") for home in homes)


def test_every_module_has_a_layer() -> None:
    unplaced = {part_of(name) for name in modules() if name and layer(part_of(name)) < 0}
    assert not unplaced, f"add to LAYERS: {unplaced}"


def test_imports_go_down() -> None:
    wrong = []
    for name in modules():
        here = part_of(name)
        for target, _, line in imports(name):
            if not name or not target.startswith("shoestring."):
                continue
            there = part_of(target.removeprefix("shoestring."))
            allowed = layer(there) < layer(here) or there == here or (here, there) in ALSO
            if not allowed:
                wrong.append(f"{name}:{line} imports {target} ({here} may not know {there})")
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_inside_functions() -> None:
    wrong = [
        f"{name}:{line} imports {target} at module level"
        for name in modules()
        for target, at_top, line in imports(name)
        if at_top and target.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_and_its_kin_stay_in_their_homes() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in modules()
        for target, _, line in imports(name)
        if target.split(".")[0] in ENGINE and not starts(name, ENGINE_HOMES)
    ]
    assert not wrong, "\n".join(wrong)


def test_pydantic_is_the_run_files_alone() -> None:
    users = {name for name in modules() for target, _, _ in imports(name) if target.split(".")[0] == "pydantic"}
    assert {u for u in users if not u.startswith("serve.gateway")} <= {"config", "sections", "task"}


def test_the_network_is_reached_from_few_places() -> None:
    wrong = [
        f"{name}:{line} imports {target}"
        for name in modules()
        for target, _, line in imports(name)
        if target.split(".")[0] in NETWORK and target not in NETWORK_HARMLESS and not starts(name, NETWORK_HOMES)
    ]
    assert not wrong, "\n".join(wrong)


def test_extras_named_in_code_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "require":
                named |= {
                    k.value.value for k in node.keywords if k.arg == "extra" and isinstance(k.value, ast.Constant)
                }
    assert named <= set(project["optional-dependencies"]), named


def test_files_stay_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    long = {name: length for name, length in lengths.items() if length >= MAX_LINES}
    assert not long


def test_the_main_path_is_short() -> None:
    assert len((PACKAGE / "recipe.py").read_text(encoding="utf-8").splitlines()) < MAX_RECIPE_LINES


def test_commands_have_few_options_and_say_what_they_do() -> None:
    from typer.main import get_command

    from shoestring.cli.commands import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    expected = "init run curate decide plan check train eval export report runs models prices explain synth demo"
    expected += " judge label launch serve ui"
    assert list(commands) == [*expected.split(), "import", "bench"]
    of_groups = {f"{g} {name}": c for g in ("import", "bench") for name, c in commands.pop(g).commands.items()}
    for name, command in {**commands, **of_groups}.items():
        options = [p for p in command.params if p.param_type_name == "option"]
        assert len(options) <= MAX_OPTIONS, f"{name} has {len(options)} options"
        assert all(p.help for p in command.params), f"{name} has an argument without help"
        assert f"Example: shoestring {name}" in command.help
        assert any("--json" in p.opts for p in options), f"{name} lacks --json"


# ---- what importing costs -------------------------------------------------------------------


def loaded_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after running code."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
    )
    return set(json.loads(done.stderr.strip().splitlines()[-1]))


def test_help_costs_little_more_than_typer() -> None:
    typer_alone = loaded_after("import typer")
    with_help = loaded_after("from shoestring.cli.main import run\nrun(['--help'])")
    assert len(with_help) <= 1.5 * len(typer_alone), (len(with_help), len(typer_alone))
    roots = {name.split(".")[0] for name in with_help}
    assert not roots & (HEAVY | {"pydantic", "yaml", "numpy"})


def test_help_of_a_command_is_as_quick() -> None:
    roots = {name.split(".")[0] for name in loaded_after("from shoestring.cli.main import run\nrun(['run', '--help'])")}
    assert not roots & (HEAVY | {"yaml", "numpy"})


def test_every_module_imports_and_none_brings_a_heavy_package() -> None:
    names = [f"shoestring.{name}" for name in modules() if name and name != "__main__"]
    loaded = loaded_after(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert not {name.split(".")[0] for name in loaded} & HEAVY
    assert set(names) <= loaded


def test_importing_the_package_brings_nothing() -> None:
    loaded = loaded_after("import shoestring")
    assert {name for name in loaded if name.startswith("shoestring")} == {"shoestring"}


# ---- what is exported -----------------------------------------------------------------------


@pytest.mark.parametrize("name", shoestring.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(shoestring, name) is not None
    assert name in dir(shoestring)


def test_public_names_are_pinned() -> None:
    assert shoestring.__all__ == [
        "__version__",
        *("Run", "RunConfig", "load_run_file"),
        *("Example", "Message", "Verdict", "ShoestringError"),
        *("load", "curate", "detect", "score_arm", "paired_difference"),
        *(
            "plan_ladder",
            "predict_memory",
            "predict_throughput",
            "price_for",
            "train_rung",
            "merge_adapter",
            "render_report",
        ),
    ]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        shoestring.nonsense  # noqa: B018


def test_reimporting_a_part_does_not_hide_a_public_function() -> None:
    """Submodules become attributes of their package; none may have the name of an export."""
    for name in shoestring._EXPORTS:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"shoestring.{name}")


def test_schema_file_is_current() -> None:
    written = json.loads((PACKAGE / "run.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), "run: make schema"
