"""The README.md that goes with an adapter or merged weights: what it is, how good, what it cost, how to load it.

Every number comes from a record of the run; a fact nobody has given is left out or said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..embedded import embedded_path, family
from ..files import read_json, write_whole
from ..ladder import model_of
from ..records import ArmScore, MergeCheck
from ..train.adapter import ORIGIN, method_words
from ..train.base import resolve_model
from ..train.preferred import told
from ..units import duration, usd
from ..versions import package_versions
from .gguf_check import GgufCheck

NO_DORA = "Servers of many adapters, vLLM among them, take no DoRA: serve the merged weights."


def write_model_card(
    folder: Path, config: RunConfig, arm: ArmScore, counts: Mapping[str, int], check: MergeCheck | None = None
) -> Path:
    """Write folder/README.md for the adapter or the merged model in it; returns its path."""
    folder = Path(folder)
    prompts = _prompts(config, arm)
    arm = replace(arm, model=model_of(arm.model))
    is_adapter = (folder / "adapter_config.json").is_file()
    text = "\n".join(
        [
            *_front_matter(arm, config, is_adapter),
            f"# {config.name}: {arm.model}, " + _title(folder, is_adapter),
            "",
            *_what(config, arm, is_adapter),
            *prompts,
            *_scores(config, arm),
            *_data(counts),
            *_cost(arm),
            *_merge(folder, check, is_adapter),
            *_loading(arm, is_adapter, _origin(folder).get("words", "")),
            *_made_with(folder),
        ]
    )
    write_whole(folder / "README.md", text.rstrip() + "\n")
    return folder / "README.md"


def _origin(folder: Path) -> dict[str, Any]:
    """What the folder says of how it was made, empty where it says nothing."""
    return read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}


def _title(folder: Path, is_adapter: bool) -> str:
    if _origin(folder).get("method") == "full":
        return "fine-tuned weights"
    return "LoRA adapter" if is_adapter else "merged weights"


def base_licence(model: str) -> str | None:
    """The base's licence where its folder or the embedded family states one; None: unknown."""
    if model in family():
        return "apache-2.0"
    folder = Path(resolve_model(model))
    readme = folder / "README.md"
    if folder.is_dir() and readme.is_file():
        for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip() or None
    return None


def _front_matter(arm: ArmScore, config: RunConfig, is_adapter: bool) -> list[str]:
    licence = base_licence(arm.model)
    lines = ["---", f"base_model: {arm.model}", "pipeline_tag: text-generation"]
    lines += ["library_name: peft" if is_adapter else "library_name: transformers"]
    lines += [f"license: {licence}"] if licence else []
    tags = ["shoestring", config.task.kind, *(["lora"] if is_adapter else [])]
    return [*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


def _what(config: RunConfig, arm: ArmScore, is_adapter: bool) -> list[str]:
    licence = base_licence(arm.model)
    known = (
        f"Licence of the base: {licence}." if licence else "Licence of the base: not stated here; look at its own page."
    )
    embedded = " a demonstration model of the embedded family" if embedded_path(arm.model) else ""
    kind = "An adapter for" if is_adapter else "Weights of"
    lines = [
        f"{kind} `{arm.model}`{',' + embedded if embedded else ''}, fine-tuned for one task: {config.task.kind}.",
        known,
    ]
    if config.task.instruction:
        lines.append(f"Instruction: {config.task.instruction}")
    return [*lines, ""]


def _prompts(config: RunConfig, arm: ArmScore) -> list[str]:
    """What a prompt must hold, of what was trained with passages."""
    if model_of(arm.model) == arm.model:
        return []
    return [
        "## Prompts",
        "",
        f"It learned to answer with passages in the prompt: up to {config.retrieval.num_chunks} of `passages.jsonl`, "
        "found by the text of the user's turns, stand before the last one as `retrieval.json` says. Without them it "
        "answers worse than it scored here.",
        "",
    ]


def _scores(config: RunConfig, arm: ArmScore) -> list[str]:
    score = arm.score
    met = "met" if arm.meets(config.task.bar) else "not met"
    others = [(name, value) for name, value in arm.metrics.items() if name != arm.metric]
    return [
        "## Scores",
        "",
        f"On {arm.num_rows} held-out rows, 95 % interval ({arm.interval}); the bar of {config.task.bar:g} was {met}.",
        "",
        "| metric | value | low | high |",
        "|---|---|---|---|",
        f"| {arm.metric} | {score.value:.3f} | {score.low:.3f} | {score.high:.3f} |",
        *(f"| {name} | {value:.3f} | | |" for name, value in others),
        "",
        *_far(arm),
        *([f"Of {told(arm.details['preference'])}.", ""] if arm.details.get("preference") else []),
    ]


def _far(arm: ArmScore) -> list[str]:
    if arm.far is None or arm.far.score is None or arm.far.num_rows == arm.num_rows:
        return []
    score = arm.far.score
    return [
        f"On the {arm.far.num_rows} of them that no training row is near to: {score.value:.3f} "
        f"({score.low:.3f} to {score.high:.3f}).",
        "",
    ]


def _data(counts: Mapping[str, int]) -> list[str]:
    return ["## Data", "", *(f"- {name.replace('_', ' ')}: {number:,}" for name, number in counts.items()), ""]


def _cost(arm: ArmScore) -> list[str]:
    details = arm.details
    lines = ["## Cost", "", f"- training and evaluation: {duration(arm.wall_s)}, {usd(arm.cost_usd)}"]
    if "train_s" in details:
        lines.append(
            f"- training alone: {duration(float(details['train_s']))}, {details.get('num_steps')} optimizer steps"
        )
    return [*lines, ""]


def _merge(folder: Path, check: MergeCheck | None, is_adapter: bool) -> list[str]:
    if check is None or is_adapter:
        return []
    origin = _origin(folder)
    is_full = origin.get("method") == "full"
    if is_full and "compared_in" not in origin:  # the weights as trained, not what was made of them
        return []
    apart, itself = (
        ("the weights as trained, in float32,", "training") if is_full else ("base + adapter", "the adapter")
    )
    instead = "the rung's model folder" if is_full else "the adapter"
    verdict = "passed" if check.passed else f"**failed: use {instead} instead of these weights**"
    noise = f", rounding to 16 bits by {check.rounding_noise:.2g}" if check.rounding_noise else ""
    return [
        "## Merge check",
        "",
        f"Against {apart} on {check.num_tokens} held-out answer tokens, after reload from disk, in "
        f"{origin.get('compared_in', 'the same')} arithmetic: {verdict}.",
        "",
        f"- merged onto: {origin.get('base', 'original weights')}; shipped in {origin.get('dtype', 'their own type')}",
        f"- mean |difference| of log-probability: {check.mean_abs_logprob_diff:.2g} "
        f"({itself} itself changes it by {check.adapter_effect:.2g}{noise}); KL divergence {check.kl:.2g}",
        *([f"- of two merges: {merge_choice(check.candidates)}"] if check.candidates else []),
        f"- same greatest token: {check.top1_agreement_frac:.1%}; same greedy answer: {check.greedy_match_frac:.1%}",
        *(f"- {fault}" for fault in check.faults),
        "",
    ]


def merge_choice(candidates: Mapping[str, Any]) -> str:
    """Of an NF4 base's two merges: which is shipped, and by what difference."""
    other = "original" if candidates["shipped"] == "dequantised" else "dequantised"
    rows, p_value = f"{candidates['num_rows']} held-out rows", f"p = {candidates['p_value']:.2g}"
    return (
        f"onto {candidates['shipped']} weights ({candidates['metric']} {candidates[candidates['shipped']]:.3f}, onto "
        f"the {other} {candidates[other]:.3f}; {rows}, {p_value})"
    )


def _loading(arm: ArmScore, is_adapter: bool, words: str) -> list[str]:
    base = f'embedded_path("{arm.model}")' if arm.model in family() else f'"{arm.model}"'
    where = ["from shoestring.embedded import embedded_path"] if arm.model in family() and is_adapter else []
    load = (
        [
            "from peft import PeftModel",
            *where,
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f"base = AutoModelForCausalLM.from_pretrained({base})",
            'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        ]
        if is_adapter
        else [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        ]
    )
    return [
        "## Loading",
        "",
        "```python",
        *load,
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        'messages = [{"role": "user", "content": "..."}]',
        "prompt = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        "answer = model.generate(**prompt, do_sample=False, max_new_tokens=128)[0, prompt.input_ids.shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
        "```",
        "",
        *([NO_DORA, ""] if is_adapter and "DoRA" in words else []),
    ]


def write_gguf_card(
    folder: Path, config: RunConfig, arm: ArmScore, counts: Mapping[str, int], checks: Sequence[GgufCheck],
    loading: Sequence[str], notes: Sequence[str],
) -> Path:  # fmt: skip
    """Write folder/README.md for GGUF files: their agreement with transformers, and the commands that run them."""
    prompts = _prompts(config, arm)
    arm = replace(arm, model=model_of(arm.model))
    front = "\n".join(_front_matter(arm, config, False)).replace("library_name: transformers", "library_name: gguf")
    rows = [
        f"| {c.name} | {c.kind} | {c.mean_abs_logprob_diff:.2g} | {c.noise:.2g} | "
        f"{'base' if c.effect is None else format(c.effect, '.2g')} | {c.top1_agreement_frac:.1%} | "
        f"{c.greedy_match_frac:.0%} | {c.num_texts_same_ids}/{c.num_texts} |"
        for c in checks
    ]
    text = "\n".join(
        [
            front,
            f"# {config.name}: {arm.model}, GGUF",
            "",
            *_what(config, arm, False),
            *prompts,
            *_scores(config, arm),
            "The scores are those of the model before it was converted; how far the files are from it:",
            "",
            "| file | kind | \\|Δ log-probability\\| | rounding | what training changed | same first choice "
            "| same greedy answer | texts with the same tokens |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {note}" for note in notes),
            *([""] if notes else []),
            *_data(counts),
            *_cost(arm),
            "## Loading",
            "",
            "```console",
            *(f"$ {line}" for line in loading),
            "```",
        ]
    )
    write_whole(folder / "README.md", text.rstrip() + "\n")
    return folder / "README.md"


def _made_with(folder: Path) -> list[str]:
    origin = _origin(folder)
    versions = ", ".join(f"{name} {number}" for name, number in package_versions().items())
    method = origin.get("words") or method_words(origin.get("method", "lora"))
    return ["## Made with", "", f"Shoestring; {method}; {versions}."]
