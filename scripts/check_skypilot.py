"""SkyPilot itself on tasks that `shoestring launch --on skypilot` writes, without an account and without the network.

`python scripts/check_skypilot.py --install FOLDER` makes an environment with SkyPilot (a minute, half a gigabyte).
`FOLDER/bin/python scripts/check_skypilot.py TASK.yaml...` prints a JSON object for each: the task loads with
`sky.Task.from_yaml`, SkyPilot's optimizer chooses among its machines at the prices of a seeded catalog, and a dry run
in this process finishes; a service passes SkyServe's own validation instead of the dry run. What is not as in a
launch: clouds count as having credentials, the bucket is left out of the dry run (SkyPilot asks its cloud for it),
and `rsync`, which must exist and is not used, is made up where there is none.
Exit status 1 where one fails.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "skypilot-requirements.txt"
CATALOG = ".sky/catalogs/v8"  # files there that SkyPilot did not download itself are never refreshed
COLUMNS = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,SpotPrice,Region,GpuInfo,AvailabilityZone"
)
SEEDED = {"lambda": "us-east-1", "runpod": "US", "nebius": "eu-north1"}  # clouds of one catalog file, and a region
ZONES = {"runpod": "US-GA-1"}  # of clouds that have zones
LIST_USD = 2.0  # per GPU-hour in the seeded catalog, where a machine has no max_hourly_cost
SEEDED_FRAC = 0.8  # of max_hourly_cost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=Path)
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.install:
        install(given.install)
    failed = False
    with tempfile.TemporaryDirectory() as home:
        for path in given.tasks:
            started = time.monotonic()
            told = {"file": str(path)}
            try:
                told |= {"ok": True, **check(path, Path(home))}
            except Exception as error:  # SkyPilot has many kinds
                told |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
                failed = True
            print(json.dumps({**told, "wall_s": round(time.monotonic() - started, 1)}), flush=True)
    return int(failed)


def install(folder: Path) -> None:
    """An environment with SkyPilot; kept where it is there."""
    if (folder / "bin" / "sky").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)


def check(path: Path, home: Path) -> dict:
    """Load, optimize and dry-run one task. home: a folder that stands for the user's."""
    import yaml

    os.environ |= {
        "HOME": str(home), "SKY_RUNTIME_DIR": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_DEV": "0", "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    with_rsync(home / "bin")
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = given["resources"].get("ordered") or given["resources"].get("any_of") or [given["resources"]]
    clouds = seed(home / CATALOG, wanted)

    import sky
    from sky import check as sky_check
    from sky import execution, optimizer
    from sky.utils import registry

    enabled = [registry.CLOUD_REGISTRY.from_str(name) for name in clouds]
    sky_check.get_cached_enabled_clouds_or_refresh = lambda *args, **kwargs: enabled
    if "service" in given:
        return check_service(path, given)
    secrets = [(name, "a-value-for-the-check") for name in given.get("secrets") or {}]
    task = sky.Task.from_yaml(str(path))  # as `sky jobs launch` reads it
    loaded = {"resources": [str(r) for r in task.resources], "secrets": sorted(task.secrets)}
    loaded["buckets"] = [f"{place}: {what.source}" for place, what in task.storage_mounts.items()]
    mounts = {place: what for place, what in given["file_mounts"].items() if isinstance(what, str)}
    task = sky.Task.from_yaml_config({**given, "file_mounts": mounts}, secrets_overrides=secrets)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        dag = sky.Dag()
        dag.add(task)
        optimizer.Optimizer.optimize(dag, quiet=True)
        chosen = str(task.best_resources)
        execution.launch(task, cluster_name="shoestring-check", dryrun=True, _quiet_optimizer=True)
    return {**loaded, "chosen": chosen, "dry_run": "finished"}


def check_service(path: Path, given: dict) -> dict:
    """Load a service as `sky serve up` does, ask SkyServe's own validation, and let the optimizer choose."""
    import sky
    from sky import optimizer
    from sky.serve import serve_utils

    sky.Task.from_yaml(str(path))  # as `sky serve up` reads it
    secrets = [(name, "a-value-for-the-check") for name in given.get("secrets") or {}]
    task = sky.Task.from_yaml_config(given, secrets_overrides=secrets)
    serve_utils.validate_service_task(task, pool=False)
    spec = task.service
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        dag = sky.Dag()
        dag.add(task)
        optimizer.Optimizer.optimize(dag, quiet=True)
    return {
        "chosen": str(task.best_resources),
        "secrets": sorted(task.secrets),
        "mounts": sorted(task.file_mounts),
        "service": {
            "readiness_path": spec.readiness_path,
            "initial_delay_seconds": spec.initial_delay_seconds,
            "min_replicas": spec.min_replicas,
            "max_replicas": spec.max_replicas,
            "target_qps_per_replica": spec.target_qps_per_replica,
            "use_ondemand_fallback": spec.use_ondemand_fallback,
            "base_ondemand_fallback_replicas": spec.base_ondemand_fallback_replicas,
        },
    }


def seed(folder: Path, wanted: list[dict]) -> list[str]:
    """Catalogs in which the clouds of the task rent out its machines; returns the clouds."""
    rows: dict[str, list[tuple]] = {name: [] for name in SEEDED}
    for resource in wanted:
        cloud, _, region = resource["infra"].partition("/")
        if cloud not in SEEDED:
            raise ValueError(f"no catalog is seeded for {cloud}; give a task on {', '.join(SEEDED)}")
        ((gpu, num),) = resource["accelerators"].items()
        info = {"Gpus": [{"Name": gpu, "MemoryInfo": {"SizeInMiB": 81920}}], "TotalGpuMemoryInMiB": 81920 * num}
        taken_usd = resource.get("max_hourly_cost", LIST_USD * num) * SEEDED_FRAC
        price, spot = (taken_usd * 2, taken_usd) if resource.get("use_spot") else (taken_usd, "")
        row = (
            f"{num}x_{gpu}_SECURE",
            gpu,
            num,
            16 * num,
            128 * num,
            price,
            spot,
            region or SEEDED[cloud],
            str(info),
            ZONES.get(cloud),
        )
        rows[cloud].append(row)
    for cloud, found in rows.items():
        target = folder / cloud / "vms.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            last = None if cloud in ZONES else -1
            writer.writerows(row[:last] for row in (COLUMNS.split(","), *found))
    names = sorted({gpu for resource in wanted for gpu in resource["accelerators"]})
    common = {"accelerators.csv": ("AcceleratorName", "Clouds"), "metadata.csv": ("GPU", "MemoryGB", "Manufacturer")}
    (folder / "common").mkdir(exist_ok=True)
    for name, heads in common.items():
        with (folder / "common" / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(heads)
            rest = ("",) if len(heads) == 2 else (80, "NVIDIA")
            writer.writerows((gpu, *rest) for gpu in names)
    return list(dict.fromkeys(resource["infra"].partition("/")[0] for resource in wanted))


def with_rsync(folder: Path) -> None:
    """A program of that name, where there is none: a dry run looks for it and copies nothing."""
    import shutil

    if shutil.which("rsync") is None:
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "rsync"
        program.write_text('#!/bin/sh\ntest "$1" = --version\n')
        program.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
