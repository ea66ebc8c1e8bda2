"""A whole run killed with SIGKILL and continued ends as one left alone; the bench with five kills, made small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_killed_run_continues_to_the_same_adapter() -> None:
    command = [sys.executable, "-m", "bench.kill_run", "--json", "--forked", "--kills", "2", "--rows", "120"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] >= 1 and result["bit_equal"], result
    assert (result["lost"], result["repeated"], result["half_written"]) == (0, [], []), result
