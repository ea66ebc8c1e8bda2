"""The wheel as it is published: what it holds, what it says of itself, and that it runs outside the checkout."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import shoestring
from shoestring.embedded import family

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
RUN_FILE = """
name: tiny
task: {kind: classify, bar: 0.99}
data: {train: rows.jsonl}
models: shoestring-1m
curate: {eval_rows: 20}
decide: {arms: [zero_shot], max_rows: 20}
train: {num_epochs: 1, num_evals: 1}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network, by the build backend of the dev extra."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [*PIP, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src" / "shoestring"
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {str(p.relative_to(package.parent)) for p in files} <= names
    needed = [f"embedded/{model}/{file}" for model in family() for file in MODEL_FILES]
    needed += ["py.typed", "run.schema.json", "plan/models.csv", "plan/gpus.csv"]
    assert not {f"shoestring/{name}" for name in needed} - names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "scripts/"))]


def test_its_metadata_is_the_projects(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        info = f"shoestring-{project['version']}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        assert "shoestring = shoestring.cli.main:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert (metadata["Name"], metadata["Version"]) == ("shoestring", shoestring.__version__)
    assert (metadata["Requires-Python"], metadata["License-Expression"]) == (">=3.11", "Apache-2.0")
    required = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert len(required) == len(project["dependencies"])
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_it_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target, here = tmp_path / "installed", tmp_path / "elsewhere"
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    here.mkdir()
    colours = ("red", "green", "blue")
    rows = [{"prompt": f"thing {i} is {colours[i % 3]}", "completion": colours[i % 3]} for i in range(120)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (here / "tiny.yaml").write_text(RUN_FILE, encoding="utf-8")

    def told(*command: str, expected: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=here, check=False)
        assert done.returncode == expected, done.stderr
        return done.stdout

    where = told(sys.executable, "-c", "import shoestring; print(shoestring.__file__)")
    assert Path(where.strip()).is_relative_to(target)
    program = str(target / "bin" / "shoestring")
    assert shoestring.__version__ in told(program, "--version")
    assert "bar" in told(program, "explain", "task.bar")
    result = json.loads(told(program, "run", "tiny.yaml", "--json", expected=3))
    assert result["stage"] == "done" and [arm["kind"] for arm in result["arms"]] == ["zero_shot", "finetune"]
    assert (here / "runs/tiny/report.html").is_file()
