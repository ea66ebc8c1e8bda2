"""The fine-tuning services' own SDKs: that they take what we give them, and a job from start to end on the loopback.

`python scripts/check_vendors.py --install FOLDER` makes the environment (half a minute, 150 MB).
`python scripts/check_vendors.py [--python PATH] [--live]` prints a JSON object a service; exit status 1 if one failed.
--live also asks each service whose key is set for its files and jobs, and for the limits of --model: nothing is sent,
nothing is ordered, nothing costs money.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "vendor-requirements.txt"


def install(folder: Path) -> None:
    """The environment, once for these requirements."""
    mark = folder / "requirements.txt"
    if mark.is_file() and mark.read_text() == REQUIREMENTS.read_text():
        return
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    mark.write_text(REQUIREMENTS.read_text())


def loopback(vendor: str, folder: Path) -> dict[str, object]:
    """One job: sent, ordered, followed, brought. Its bill is what the service says."""
    from tests.test_launch_managed import KEYS, Place

    os.environ.update(KEYS, FIREWORKS_ACCOUNT_ID="acct")
    place = Place(vendor, folder)
    started_s = time.monotonic()
    place.start()
    status = place.follow()
    place.managed.fetch(place.launch)
    assert status.state == "done", status
    assert len(place.server.creates) == 1, place.server.creates
    journal = json.loads(next(place.run_folder.glob("managed/*/job.json")).read_text())
    return {
        "sdk": journal["sdk"],
        "requests": len(place.server.requests),
        "orders": len(place.server.creates),
        "cost_usd": status.cost_usd,
        "brought": sorted(p.name for p in place.run_folder.glob("managed/*/result/adapter/*")),
        "wall_s": round(time.monotonic() - started_s, 2),
    }


def live(vendor: str, folder: Path, model: str) -> dict[str, object]:
    """What can be asked for nothing."""
    from shoestring.launch.managed.backend import python_of
    from shoestring.launch.managed.client import Client
    from shoestring.launch.managed.flow import jobs_of
    from shoestring.launch.managed.vendors import VENDORS, has_key

    if not has_key(VENDORS[vendor]):
        return {"live": f"not asked: {VENDORS[vendor].key_env} is not set"}
    client = Client(VENDORS[vendor], folder / "sdk.log", python=python_of({}))
    told: dict[str, object] = {"live": "asked", "jobs_of_ours": len(jobs_of(client, "shoestring-"))}
    told["has_our_file"] = client.ask("find_file", name="shoestring-none.jsonl", num_bytes=1) is not None
    if model and vendor == "together":
        told["limits"] = client.ask("limits", model=model)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="", help="of the environment that has the SDKs (default: .venv/vendors)")
    parser.add_argument("--live", action="store_true")
    parser.add_argument("--model", default="")
    given = parser.parse_args()
    if given.install:
        install(given.install)
        return 0
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    if given.python:
        os.environ["SHOESTRING_VENDOR_PYTHON"] = given.python
    from shoestring.launch.managed.vendors import VENDORS

    failed = False
    for vendor in [name for name, facts in VENDORS.items() if facts.base_url]:
        with tempfile.TemporaryDirectory() as folder:
            told: dict[str, object] = {"vendor": vendor}
            try:
                if given.live:
                    told |= live(vendor, Path(folder), given.model)
                else:
                    told |= loopback(vendor, Path(folder))
                told["ok"] = True
            except Exception as error:  # each is told, and the next one is checked all the same
                told |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]}
                failed = True
        print(json.dumps(told), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
