"""A small run that tests launch, and the same run left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.kill_run import write_inputs
from shoestring.launch.jobs import import_path

SHORT = "{arms: [zero_shot], max_rows: 20}"


def write_run(folder: Path, name: str, more: str = "") -> Path:
    """Data and run file; more: lines of the run file."""
    run_file = write_inputs(folder, "shoestring-1m", 120, name)
    text = run_file.read_text().replace("{max_rows: 20, num_shots: 1}", SHORT)
    run_file.write_text(f"{text}evaluate: {{regression: false}}\n{more}")
    return run_file


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports this very code and uses one thread."""
    return {**os.environ, "PYTHONPATH": import_path(), "OMP_NUM_THREADS": "1", **more}


def run_alone(folder: Path) -> Path:
    """Run it to its end; the run folder."""
    run_file = write_run(folder, "alone")
    command = [sys.executable, "-m", "shoestring", "run", str(run_file), "--runs-dir", str(folder / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 3, done.stderr  # the bar was not met
    return folder / "runs" / "alone"


def adapter(run_folder: Path) -> bytes:
    """The weights that a run trained."""
    return next(run_folder.glob("rungs/*/adapter/adapter_model.safetensors")).read_bytes()
