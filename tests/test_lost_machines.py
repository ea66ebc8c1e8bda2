"""A machine taken away in the middle of training: the next ends with the adapter of a run left alone; made small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_next_machine_ends_with_the_same_adapter() -> None:
    command = [sys.executable, "-m", "bench.lost_machines", "--json", "--machines", "1", "--rows", "100"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["machines_lost"], result["bit_equal"], result["lost"]) == (1, True, 0), result
    assert len(result["billed_s"]) == 2 and result["outcome"]["exit_code"] == 3
