"""The exported run as llama.cpp and Ollama take it: `shoestring export --to gguf|gguf-adapter|ollama`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, ModelError
from ..files import read_json, write_json
from ..ladder import model_of
from ..records import ArmScore, Example, to_json
from ..serve import gguf, gguf_check
from ..serve.card import write_gguf_card
from ..serve.llamacpp_home import LlamaCpp, converter
from ..serve.merge import is_legal
from ..serve.ollama import frame_of, write_modelfile
from ..train.tokens import load_tokenizer
from .closing import MERGE_CHECK_ROWS
from .common import device, replacing, sample_rows
from .preparing import read_again
from .retrieving import rows_for

if TYPE_CHECKING:
    from ..recipe import Run

FORMS = ("gguf", "gguf-adapter", "ollama")
DEFAULT_KIND = "q8_0"


def require_form(form: str, kind: str) -> LlamaCpp:
    """Raises: BadInput for a form or kind that is none; MissingDependency where llama.cpp is not here."""
    if form not in FORMS:
        raise BadInput(f"--to {form}: choose one of trl, axolotl, {', '.join(FORMS)}")
    gguf.require_kind(kind)
    return converter()


def export_as(run: Run, chosen: ArmScore, form: str, kind: str, home: LlamaCpp) -> dict[str, Any]:
    """Write export/FORM/ from what export wrote, prove it against transformers, and say what it is.

    Files that are not what was trained are removed. Raises: ModelError, ShoestringError, BadInput.
    """
    curated = read_again(run)
    rows = sample_rows(rows_for(run, curated, chosen.model).eval, MERGE_CHECK_ROWS, run.config.seed)
    record = run.run_folder.record("export.json")
    assert record is not None, "the export stage has just run"
    exported = record["result"]
    folder = run.folder / "export" / form
    write = _write_adapter if form == "gguf-adapter" else _write_merged
    with replacing(run, folder) as partial:
        checks, loading, notes = write(run, chosen, exported, partial, form, kind, home, rows)
        for check in checks:
            gguf_check.require(check)
        write_gguf_card(partial, run.config, chosen, curated.counts, checks, loading, notes)
        write_json(partial / "check.json", to_json(checks))
        for file in (run.folder / exported["merged_dir"]).iterdir():
            if is_legal(file):
                shutil.copyfile(file, partial / file.name)
    return {
        "tool": form,
        "model": chosen.model,
        "kind": kind,
        "folder": str(folder),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
        "checks": to_json(checks),
        "command": " && ".join([f"cd {folder}", *loading]),
        "notes": notes,
    }


def require_merged(merged: Path, check: dict[str, Any]) -> None:
    """Raises: ModelError where the merged weights are not what was trained, naming what is wrong."""
    if not check["passed"]:
        faults = "; ".join(check.get("faults", ())) or "they differ from what was trained"
        raise ModelError(
            f"the merged weights in {merged} are refused ({faults}), so they are not converted; --to gguf-adapter "
            "converts the adapter and its base apart"
        )


def _write_merged(
    run: Run, chosen: ArmScore, exported: dict[str, Any], folder: Path, form: str, kind: str, home: LlamaCpp,
    rows: Sequence[Example],
) -> tuple[list[gguf_check.GgufCheck], list[str], list[str]]:  # fmt: skip
    merged = run.folder / exported["merged_dir"]
    require_merged(merged, exported["merge_check"])
    tokenizer, notes = load_tokenizer(str(merged)), []
    if form == "ollama":
        _refuse_for_ollama(run, chosen, rows)
        frame_of(tokenizer)
    name = f"{run.config.name}-{kind}.gguf"
    run.progress(f"{name}: convert", 0, None)
    how = gguf.write_model(merged, folder / name, kind, home)
    run.log(f"{name}: pre-tokenizer {how}")
    run.progress(f"{name}: compare with transformers", 0, None)
    checked = gguf_check.check_model(
        folder / name, kind, str(merged), home, device=device(run), examples=rows, base=model_of(chosen.model)
    )
    if kind not in gguf.EXACT:
        notes.append(f"{kind} holds rounded weights: its own scores were not measured, the comparison above was")
    loading = [f"llama-server -m {name} --jinja --temp 0"]
    if form == "ollama":
        with gguf_check.serving(home, folder / name, num_threads=gguf_check.threads()) as server:
            starts_itself = server.starts_itself(tokenizer.bos_token_id)
        notes += write_modelfile(
            folder, name, tokenizer, system=run.config.data.system, context_tokens=_context_tokens(merged),
            starts_itself=starts_itself,
        )  # fmt: skip
        loading = [f"ollama create {run.config.name} -f Modelfile", f"ollama run {run.config.name}"]
    return [checked], loading, notes


def _context_tokens(merged: Path) -> int:
    """As config.json says; 0 where it does not."""
    config = read_json(merged / "config.json")
    return int((config.get("text_config") or config).get("max_position_embeddings") or 0)


def _refuse_for_ollama(run: Run, chosen: ArmScore, rows: Sequence[Example]) -> None:
    """Raises: BadInput for what a Modelfile's template would leave out."""
    if any(example.tools for example in rows):
        raise BadInput(
            "the rows declare tools, which the Modelfile's template has no place for; --to gguf gives a file that "
            "llama-server --jinja serves with the model's own template"
        )
    if model_of(chosen.model) != chosen.model:
        raise BadInput(
            f"{chosen.model} answers with passages in its prompts, and Ollama finds none; use shoestring serve"
        )


def _write_adapter(
    run: Run, chosen: ArmScore, exported: dict[str, Any], folder: Path, form: str, kind: str, home: LlamaCpp,
    rows: Sequence[Example],
) -> tuple[list[gguf_check.GgufCheck], list[str], list[str]]:  # fmt: skip
    del form
    adapter, model, notes = run.folder / exported["adapter_dir"], model_of(chosen.model), []
    if not (adapter / "adapter_config.json").is_file():
        raise BadInput(f"{adapter} is a model trained whole, and no adapter; --to gguf converts it")
    base_name, name = f"base-{kind}.gguf", f"{run.config.name}.gguf"
    with tempfile.TemporaryDirectory(prefix=".base-", dir=folder) as work:
        base = gguf.base_folder(model, Path(work) / "base")
        run.progress(f"{base_name}: convert", 0, None)
        gguf.write_adapter(adapter, base, folder / name, home)
        gguf.write_model(base, folder / base_name, kind, home)
    run.progress(f"{name}: compare with transformers", 0, None)
    checks = gguf_check.check_adapters(
        folder / base_name, kind, model, {run.config.name: (adapter, folder / name)}, home, device=device(run),
        examples=rows,
    )  # fmt: skip
    if read_json(adapter / "shoestring.json").get("method") == "qlora":
        notes.append(
            "the adapter was trained on NF4 weights and stands here on others: another model than the one that was "
            "scored; --to gguf converts the merged weights, which are it"
        )
    return checks, [f"llama-server -m {base_name} --lora {name} --jinja --temp 0"], notes
