"""llama.cpp for real: fine-tunes of the embedded family as GGUF files and as a Modelfile, against transformers.

`python scripts/check_llamacpp.py [FOLDER] [--only CHECK]` needs llama.cpp where SHOESTRING_LLAMACPP says
(scripts/build_llamacpp.py builds it). It trains two adapters on one base, one of them with rsLoRA, and a third on the
base in NF4; exports them by `shoestring export --to`, in several kinds; holds the base and both adapters in one
llama-server against transformers with PEFT; and where Go is installed renders the Modelfile's template by Go's own
text/template. Prints a JSON object a check; exit status 1 where one failed.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL, NUM_ROWS = "shoestring-1m", 400
LABELS = {
    "queue": {"refund": "billing", "invoice": "billing", "order": "sales", "crash": "tech", "login": "tech"},
    "mood": {"refund": "angry", "invoice": "calm", "order": "glad", "crash": "angry", "login": "calm"},
}
RUNS = {"queue": ("queue", {}), "mood": ("mood", {"rslora": True}), "nf4": ("queue", {"method": "qlora"})}
WORDS = "amber birch cedar delta ember frost grove heron iris jade kelp lotus maple olive pearl sable umber willow"
GO = """package main

import (
	"encoding/json"
	"os"
	"text/template"
)

func main() {
	var data struct {
		Template string
		System   string
		Messages []struct{ Role, Content string }
	}
	if err := json.NewDecoder(os.Stdin).Decode(&data); err != nil {
		panic(err)
	}
	if err := template.Must(template.New("").Parse(data.Template)).Execute(os.Stdout, data); err != nil {
		panic(err)
	}
}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", choices=CHECKS, action="append", help="over the runs that are in FOLDER")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="shoestring-llamacpp-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not given.only:
        shutil.rmtree(folder / "runs", ignore_errors=True)
    failed = False
    for name in given.only or CHECKS:
        check = CHECKS[name]
        started = time.monotonic()
        told: dict[str, Any] = {"check": name}
        try:
            told |= {"ok": True, **check(folder)}
        except subprocess.CalledProcessError as error:
            told |= {"ok": False, "error": (error.stdout + error.stderr)[-1500:]}
        except (AssertionError, OSError, ValueError) as error:
            told |= {"ok": False, "error": str(error)[-1500:]}
        failed |= told["ok"] is False
        print(json.dumps({**told, "wall_s": round(time.monotonic() - started, 1)}, ensure_ascii=False), flush=True)
    return int(failed)


def write_run(folder: Path, name: str) -> Path:
    labels, settings = RUNS[name]
    rng = random.Random(0)
    with (folder / f"{labels}.jsonl").open("w", encoding="utf-8") as file:
        for number in range(NUM_ROWS):
            word = rng.choice(list(LABELS[labels]))
            told = f"Ticket {number}: {' '.join(rng.sample(WORDS.split(), 4))} about a {word}"
            file.write(json.dumps({"prompt": told, "completion": LABELS[labels][word]}) + "\n")
    method = settings.get("method", "lora")
    train = {"num_epochs": 3, "num_evals": 3, "num_threads": 1, **{k: v for k, v in settings.items() if k != "method"}}
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nmethod: {method}\ntask: {{kind: classify, bar: 0.6}}\ndata: {{train: {labels}.jsonl}}\n"
        f"models: {MODEL}\ndecide: {{arms: [linear], train_anyway: true}}\ntrain: {json.dumps(train)}\n"
    )
    return path


def shoestring(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "shoestring", *words, "--json"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode not in (0, 3):
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_train(folder: Path) -> dict[str, Any]:
    """Two adapters on one base and one on NF4, each exported and merged."""
    told = {}
    for name in RUNS:
        done = shoestring(folder, "run", str(write_run(folder, name)))
        check = json.loads((folder / "runs" / name / "export.json").read_text())["result"]["merge_check"]
        assert check["passed"], check
        told[name] = {"score": max(arm["score"] for arm in done["arms"] if arm["kind"] == "finetune"), "merge": check}
    return told


def check_kinds(folder: Path) -> dict[str, Any]:
    """Merged weights in several kinds, of a 16-bit and of an NF4 base."""
    wanted = [("queue", kind) for kind in ("f32", "f16", "bf16", "q8_0", "q4_k_m")] + [("nf4", "f16")]
    return {f"{name} {kind}": converted(folder, name, "gguf", kind)["checks"][0] for name, kind in wanted}


def check_adapter_export(folder: Path) -> dict[str, Any]:
    """Base and adapter apart, by the command."""
    checks = converted(folder, "mood", "gguf-adapter", "f16")["checks"]
    return {check["name"]: check for check in checks}


def check_two_adapters(folder: Path) -> dict[str, Any]:
    """Base and both adapters in one llama-server, each request with a scale for every adapter."""
    sys.path.insert(0, str(ROOT / "src"))
    from shoestring.recipe import Run
    from shoestring.serve import gguf, gguf_check
    from shoestring.serve.llamacpp_home import converter
    from shoestring.stages.common import device
    from shoestring.stages.preparing import read_again

    home, work = converter(), folder / "two"
    shutil.rmtree(work, ignore_errors=True)
    base = gguf.base_folder(MODEL, work / "base")
    gguf.write_model(base, work / "base.gguf", "f16", home)
    run = Run.from_folder(folder / "runs" / "queue")
    made = {}
    for name in ("queue", "mood"):
        adapter = folder / "runs" / name / "rungs" / MODEL / "adapter"
        gguf.write_adapter(adapter, base, work / f"{name}.gguf", home)
        made[name] = (adapter, work / f"{name}.gguf")
    checks = gguf_check.check_adapters(
        work / "base.gguf", "f16", MODEL, made, home, device=device(run), examples=read_again(run).eval
    )
    for check in checks:
        gguf_check.require(check)
    return {check.name: {name: getattr(check, name) for name in check.__slots__} for check in checks}


def check_tokens(folder: Path) -> dict[str, Any]:
    """Token ids of every line of our own documentation, and of lines in other scripts, by both tokenizers."""
    sys.path.insert(0, str(ROOT / "src"))
    from shoestring.serve import gguf, gguf_check
    from shoestring.serve.llamacpp_home import converter
    from shoestring.train.base import load_tokenizer

    home, work = converter(), folder / "tokens"
    shutil.rmtree(work, ignore_errors=True)
    how = gguf.write_model(gguf.base_folder(MODEL, work / "base"), work / "base.gguf", "f16", home)
    files = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    lines = [line for line in text.splitlines() if line] + OTHER_TEXTS
    blocks = [text[start : start + 2000] for start in range(0, len(text), 2000)]
    tokenizer = load_tokenizer(MODEL)
    with gguf_check.serving(home, work / "base.gguf") as server:
        other = [t for t in [*lines, *blocks] if server.ids(t) != tokenizer(t, add_special_tokens=False).input_ids]
    assert not other, other[:3]
    return {"pre_tokenizer": how, "num_lines": len(lines), "num_blocks": len(blocks), "num_other": len(other)}


OTHER_TEXTS = [
    "Съешь ещё этих мягких французских булок",
    "いろはにほへと ちりぬるを 123",
    "العربية ١٢٣",
    "हिन्दी १२३ क्षत्रिय",
    "½ ² ³ Ⅷ ①",
    "  two  spaces\t\ttabs \n \n\n  x",
    "a\r\nb\rc",
    "👩‍👩‍👧 🇫🇷 e\u0301",
    "I'd we'LL IT'S don't 'tis",
    "<|user|>\nhi<|end|>\n",
    "x" * 500,
]


def check_ollama(folder: Path) -> dict[str, Any]:
    """The Modelfile; its template by Go's text/template against the chat template, where Go is installed."""
    made = folder / converted(folder, "queue", "ollama", "q8_0")["folder"]
    modelfile = (made / "Modelfile").read_text(encoding="utf-8")
    template = modelfile.split('TEMPLATE """')[1].split('"""')[0]
    if shutil.which("go") is None:
        return {"ok": None, "error": "Go is not installed: the template was not rendered by it"}
    sys.path.insert(0, str(ROOT / "src"))
    from shoestring.train.base import load_tokenizer

    (folder / "go").mkdir(exist_ok=True)
    (folder / "go" / "main.go").write_text(GO)
    subprocess.run(
        ["go", "build", "-o", "render", "main.go"],
        cwd=folder / "go", env={**os.environ, "GO111MODULE": "off"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    tokenizer, num_same = load_tokenizer(MODEL), 0
    for messages in CONVERSATIONS:
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        capital = [{"Role": m["role"], "Content": m["content"]} for m in messages]
        asked = json.dumps({"Template": template, "System": system, "Messages": capital})
        done = subprocess.run(
            [str(folder / "go" / "render")], input=asked, check=True, capture_output=True, text=True, encoding="utf-8"
        )
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert done.stdout == wanted, (done.stdout, wanted)
        num_same += 1
    return {"num_conversations_same_by_go": num_same}


CONVERSATIONS = [
    [{"role": "user", "content": "A printer on fire"}],
    [{"role": "system", "content": 'Be "brief".'}, {"role": "user", "content": "x\n\n  y"}],
    [
        {"role": "user", "content": "naïve 東京 🙂"},
        {"role": "assistant", "content": '{"a": [1]}'},
        {"role": "user", "content": "{{ .Content }} <|end|>"},
    ],
]


def converted(folder: Path, name: str, form: str, kind: str) -> dict[str, Any]:
    done = shoestring(folder, "export", f"runs/{name}", "--to", form, "--kind", kind)
    found: dict[str, Any] = done["converted"]
    assert all(check["passed"] for check in found["checks"])
    return found


CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "tokens": check_tokens,
    "train": check_train,
    "kinds": check_kinds,
    "adapter": check_adapter_export,
    "two adapters": check_two_adapters,
    "ollama": check_ollama,
}

if __name__ == "__main__":
    sys.exit(main())
