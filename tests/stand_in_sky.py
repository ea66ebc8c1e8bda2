"""A stand-in for `sky`: managed jobs in a file, each on a "machine" that is a folder of this one.

It answers as SkyPilot 0.14.1 does where Shoestring reads it, and it does what a job is for: file_mounts are laid out
below a home of the machine, the bucket is a folder that outlives it, and `run` is run there by a shell (`setup` is not:
the machine's Python is this one).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

STATE = Path(os.environ["STAND_IN_SKY"])  # jobs.json, calls.jsonl, bucket/, machine-N/


def jobs():
    path = STATE / "jobs.json"
    return json.loads(path.read_text()) if path.is_file() else []


def keep(found):
    (STATE / "jobs.json").write_text(json.dumps(found))


def machine(task, job):
    """A fresh machine for a job: its home, with files and installed Python."""
    home = STATE / f"machine-{job['job_id']}-{job['recovery_count']}"
    for place, what in task["file_mounts"].items():
        if isinstance(what, dict):
            continue
        target = Path(place.replace("~", str(home)))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(what, target) if Path(what).is_dir() else shutil.copyfile(what, target)
    bin_folder = home / "shoestring" / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    program = bin_folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    return home


def run_on(task, job):
    """Run the task on a new machine; returns its exit code."""
    home = machine(task, job)
    (mount,) = [place for place, what in task["file_mounts"].items() if isinstance(what, dict)]
    bucket = STATE / "bucket"
    bucket.mkdir(exist_ok=True)
    script = task["run"].replace(mount, str(bucket))
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(["bash", "-c", script], env=environment, check=False).returncode


def main(words):
    with (STATE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if words[:2] == ["jobs", "launch"]:
        task = yaml.safe_load(Path(words[-1]).read_text())
        for name in task.get("secrets") or {}:
            if name not in words or not os.environ.get(name):
                print(f"ValueError: secret {name} has no value", file=sys.stderr)
                return 1
        found = jobs()
        job = {
            "job_id": len(found) + 1, "job_name": task["name"], "status": "PENDING", "submitted_at": time.time(),
            "recovery_count": 0, "infra": "RunPod (US)", "job_duration": None, "failure_reason": None,
            "yaml": words[-1],
        }  # fmt: skip
        keep([*found, job])
        print(f"⚙︎ Job submitted, ID: {job['job_id']}")
        return 0
    if words[:2] == ["jobs", "queue"]:
        live = [j for j in jobs() if "--skip-finished" not in words or j["status"] in ("PENDING", "RUNNING")]
        if not jobs():
            print("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.", file=sys.stderr)
            return 1
        print("Fetching managed job statuses...")
        print(json.dumps(live, indent=2))
        return 0
    if words[:2] == ["jobs", "cancel"]:
        keep([{**j, "status": "CANCELLED" if str(j["job_id"]) == words[-1] else j["status"]} for j in jobs()])
        return 0
    if words[:2] == ["jobs", "logs"]:
        print("(setup) installed\n(run) step 1")
        return 0
    if words[:1] == ["status"]:
        print(json.dumps([{"name": "sky-jobs-controller-1a2b", "status": "UP", "launched_at": 1795000000}]))
        return 0
    if words[:1] == ["cost-report"]:
        print(json.dumps([{"name": "sky-jobs-controller-1a2b", "duration": 7200, "total_cost": 0.4}]))
        return 0
    print(f"Error: No such command {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
