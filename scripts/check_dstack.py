"""dstack's own models on tasks that `shoestring launch --on dstack` writes; no server, no account, no network.

`python scripts/check_dstack.py --install FOLDER` makes an environment with dstack (a quarter of a minute, 160 MB).
`FOLDER/bin/python scripts/check_dstack.py TASK.dstack.yml...` prints a JSON object for each: it parses as `dstack
apply` parses it, and every GPU it asks for is one that dstack's offers know. Exit status 1 where one does not.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "dstack-requirements.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=Path)
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.install:
        install(given.install)
    failed = False
    for path in given.tasks:
        told = {"file": str(path)}
        try:
            told |= {"ok": True, **check(path)}
        except ValueError as error:  # pydantic's, and dstack's own
            told |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
            failed = True
        print(json.dumps(told), flush=True)
    return int(failed)


def install(folder: Path) -> None:
    """An environment with dstack; kept where it is there."""
    if (folder / "bin" / "dstack").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)


def check(path: Path) -> dict:
    """Parse one task. Raises: ValueError."""
    import gpuhunt
    import yaml
    from dstack._internal.core.models.configurations import parse_run_configuration
    from dstack._internal.core.services import is_valid_dstack_resource_name

    task = parse_run_configuration(yaml.safe_load(path.read_text(encoding="utf-8")))
    if not is_valid_dstack_resource_name(task.name):
        raise ValueError(f"dstack allows no run of the name {task.name}")
    known = {gpu.name.lower() for gpu in gpuhunt.KNOWN_NVIDIA_GPUS}
    unknown = [name for name in task.resources.gpu.name if name.lower() not in known]
    if unknown:
        raise ValueError(f"no GPU of dstack's offers: {unknown}")
    return {
        "name": task.name,
        "gpus": list(task.resources.gpu.name),
        "spot_policy": task.spot_policy.value,
        "max_duration_s": int(task.max_duration),
        "env": sorted(task.env.as_dict()) if not list(task.env) else sorted(task.env),
        "files": [mapping.path for mapping in task.files],
    }


if __name__ == "__main__":
    sys.exit(main())
