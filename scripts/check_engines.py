"""TRL, Axolotl and (on a GPU) Unsloth for real, each in an environment of its own, on a small classification.

`python scripts/check_engines.py [FOLDER] [--python trl=PATH] [--python axolotl=PATH]` makes the environments under
FOLDER (minutes and gigabytes; --python names one that is there), then for each: the export by its own parser or schema,
and to an adapter; `engine:` stopped in the middle by SIGTERM, continued, and scored on held-out rows. Prints a JSON
object a check; exit status 1 where one failed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL, NUM_ROWS = "shoestring-1m", 400
LABELS = {"refund": "billing", "invoice": "billing", "order": "sales", "crash": "tech", "login": "tech"}
WORDS = "amber birch cedar delta ember frost grove heron iris jade kelp lotus maple olive pearl sable umber willow"
CPU_AXOLOTL = ("-r", str(ROOT / "scripts" / "axolotl-cpu-requirements.txt"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--engine", action="append", default=[], help="only this one")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="shoestring-engines-"))).resolve()
    pythons = dict(pair.split("=", 1) for pair in given.python)
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "data.jsonl")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    failed = False
    on_gpu = has_gpu()
    for engine in given.engine or ["trl", "axolotl", *(["unsloth"] if on_gpu else [])]:
        for name, check in CHECKS.items():
            if engine == "unsloth" and name == "export":
                continue
            started = time.monotonic()
            told: dict[str, Any] = {"engine": engine, "check": name}
            try:
                if engine not in pythons:
                    pythons[engine] = make_environment(engine, folder, on_gpu)
                told |= {"ok": True, **check(engine, pythons[engine], folder)}
            except (AssertionError, subprocess.CalledProcessError, OSError) as error:
                words = getattr(error, "stderr", None) or str(error)
                told |= {"ok": False, "error": words[-1500:]}
                failed = True
            print(json.dumps({**told, "wall_s": round(time.monotonic() - started, 1)}), flush=True)
    if not on_gpu:
        print(
            json.dumps({"engine": "unsloth", "ok": None, "error": "needs a CUDA GPU, and there is none here: not run"})
        )
    return int(failed)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def make_environment(engine: str, folder: Path, on_gpu: bool) -> str:
    """The Python of a new environment with the engine."""
    python = folder / f"{engine}-env" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / f"{engine}-env")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = {"trl": ["trl>=1.0", "peft", "bitsandbytes"], "unsloth": ["unsloth"], "axolotl": ["axolotl"]}[engine]
        if engine == "axolotl" and not on_gpu:
            subprocess.run([*pip, *CPU_AXOLOTL], check=True, capture_output=True, text=True)
            wanted = ["--no-deps", "axolotl==0.19.0"]
        subprocess.run([*pip, *wanted], check=True, capture_output=True, text=True)
    return str(python)


def write_rows(path: Path) -> None:
    """Tickets whose label one word decides."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(NUM_ROWS):
            word = rng.choice(list(LABELS))
            told = f"Ticket {number}: {' '.join(rng.sample(WORDS.split(), 4))} about a {word}"
            file.write(json.dumps({"prompt": told, "completion": LABELS[word]}) + "\n")


def run_file(folder: Path, name: str, engine: str = "shoestring", python: str = "") -> Path:
    path = folder / f"{name}.yaml"
    train = {"num_epochs": 2, "num_evals": 3, "num_threads": 1, **({"engine_python": python} if python else {})}
    path.write_text(
        f"name: {name}\nengine: {engine}\ntask: {{kind: classify, bar: 0.5}}\ndata: {{train: data.jsonl}}\n"
        f"models: {MODEL}\ndecide: {{arms: [linear], train_anyway: true}}\ntrain: {json.dumps(train)}\n"
    )
    return path


def shoestring(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "shoestring", *words, "--json"],
        cwd=folder, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}


def check_export(engine: str, python: str, folder: Path) -> dict[str, Any]:
    """The export read by the tool's own parser, and run by it to an adapter that fits the base."""
    written = shoestring(folder, "export", str(run_file(folder, f"export-{engine}")), "--to", engine)
    here, outside = folder / written["folder"], {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    facts: dict[str, Any] = {"num_rows": written["num_rows"], "num_steps": written["num_steps"]}
    if engine == "axolotl":
        command = [python, str(ROOT / "scripts" / "validate_axolotl.py"), str(folder / written["config"])]
        done = subprocess.run(command, env=outside, capture_output=True, text=True, check=True)
        facts["schema"] = json.loads(done.stdout.splitlines()[-1])
        command = [python, "-m", "axolotl.cli.train", "axolotl.yaml"]
    else:
        command = [python, "-m", "trl.scripts.sft", "--config", "sft.yaml"]
    subprocess.run(command, cwd=here, env=outside, capture_output=True, text=True, check=True)
    return {**facts, **look(here / "adapter")}


def check_engine(engine: str, python: str, folder: Path) -> dict[str, Any]:
    """`engine:` stopped by SIGTERM after a few steps, continued, scored; each step recorded once."""
    path = run_file(folder, f"engine-{engine}", engine, python)
    rung = folder / "runs" / path.stem / "rungs" / MODEL
    process = subprocess.Popen(
        [sys.executable, "-m", "shoestring", "eval", str(path)], cwd=folder, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    steps = rung / "steps.jsonl"
    while process.poll() is None and (not steps.is_file() or len(steps.read_text().splitlines()) < 4):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    words = process.communicate()[1]
    assert process.returncode == 5, f"exit {process.returncode} after SIGTERM: {words}"
    stopped_at = len(steps.read_text().splitlines())
    summary = shoestring(folder, "eval", str(path))
    recorded = [json.loads(line)["step"] for line in steps.read_text().splitlines()]
    result = json.loads((rung / "train.json").read_text())["result"]
    assert recorded == list(range(1, result["num_steps"] + 1)), recorded
    arm = next(arm for arm in summary["arms"] if arm["kind"] == "finetune")
    versions = {k: v for k, v in result["settings"]["engine_versions"].items() if v}
    return {
        "stopped_at": stopped_at, "num_steps": result["num_steps"], "final_loss": round(result["final_loss"], 4),
        "accuracy": arm["score"], "versions": versions, **look(rung / "adapter"),
    }  # fmt: skip


def look(adapter: Path) -> dict[str, Any]:
    """The adapter loaded on the base by our own code, and how far it moves a logit."""
    sys.path.insert(0, str(ROOT / "src"))
    from safetensors.torch import load_file

    from shoestring.records import Example, Message, TrainSettings
    from shoestring.train.adapter import build_adapter, load_trained
    from shoestring.train.base import detect_device, encode_example, load_tokenizer
    from shoestring.train.engines.rung import require_fitting
    from shoestring.train.preflight import effect_on, probe_logits

    settings = TrainSettings(
        "lora", 16, 32, 1e-3, 1, 512, 512, 64, 0.0, 0.0, 1.0, 1, 1, num_threads=1, seed=0, max_new_tokens=8, reasons={}
    )
    device, tokenizer = detect_device(1), load_tokenizer(MODEL)
    tuned = build_adapter(MODEL, settings, device)
    require_fitting(tuned, adapter, "the check", MODEL)
    load_trained(tuned, adapter)
    said = (Message("user", "about a refund"), Message("assistant", "billing"))
    row = encode_example(tokenizer, Example(said, (1, 2)))
    asked = (tuned, [row], tokenizer.pad_token_id, device)
    with tuned.disable_adapter():
        bare = probe_logits(*asked)
    effect = effect_on(bare, probe_logits(*asked))
    return {"num_matrices": len(load_file(str(adapter / "adapter_model.safetensors"))), "effect": round(effect, 3)}


CHECKS: dict[str, Callable[[str, str, Path], dict[str, Any]]] = {"export": check_export, "engine": check_engine}


if __name__ == "__main__":
    sys.exit(main())
