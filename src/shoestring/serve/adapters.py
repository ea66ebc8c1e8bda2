"""Whether an engine can serve an adapter on a base: "serve", "merge first", or "refuse", always with the reason.

Read from the folder's configuration and the headers of the weight files; no weight is loaded. An engine may take an
adapter of another model with the same shapes and answer with it (vLLM does, peers/serving.md), so what the base is by
content is compared here, before any engine sees it.

Shapes: A (rank, in), B (out, rank) of a weight (out, in); of an embedding (num, dim) A (rank, num), B (dim, rank).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadInput, ModelError
from ..files import read_json
from ..train.adapter import ORIGIN
from ..train.base import quiet_loading
from ..train.locate import folder_at_hand, resolve_model
from ..train.prints import BasePrint, base_print, headers_in, weight_files
from ..train.watch import WEIGHTS
from .engine import Capability

Shapes = Mapping[str, tuple[int, ...]]

CONFIG = "adapter_config.json"
MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:(embedding_)?)(A|B)(?:\.weight)?")
MAGNITUDE = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_magnitude_vector(?:\.weight)?")
SHOWN = 3
SERVE, MERGE, REFUSE = "serve", "merge first", "refuse"
# Features beyond plain matrices: the field of Capability that says an engine takes them, and the words for it.
FEATURES = {
    "dora": "DoRA",
    "modules_to_save": "whole layers of its own (modules_to_save)",
    "tied_embeddings": "LoRA on the embedding or head of a base that shares them",
    "bias": "biases of its own",
    "trainable_tokens": "rows of the embedding (trainable_token_indices)",
    "patterns": "a rank or scale of its own in some layers (rank_pattern, alpha_pattern)",
}
# Switches under which the same matrices mean something that no engine here computes.
UNKNOWN_SWITCHES = ("alora_invocation_tokens", "use_qalora", "layer_replication", "megatron_config", "arrow_config")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder in PEFT's form, read without its weights."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    rank: int  # the largest of its matrices
    alpha: float
    rslora: bool
    fan_in_fan_out: bool
    targets: tuple[str, ...]  # last parts of the names of the layers it changes
    features: frozenset[str]  # of FEATURES, without tied_embeddings, which is the base's matter
    modules: frozenset[str]  # full names of those layers
    base_name: str
    base: BasePrint | None  # by content, as training recorded it
    method: str  # lora or qlora, as training recorded it
    unknown: tuple[str, ...] = ()
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A base on this machine, by content; shapes of its weights by name."""

    model: str
    folder: Path
    shapes: dict[str, tuple[int, ...]]
    is_tied: bool
    print: BasePrint
    context_tokens: int | None = None
    model_type: str = ""
    is_quantised: bool = False  # its files hold packed weights


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with an adapter under one engine. notes: what is true and worth knowing besides."""

    decision: str  # SERVE, MERGE or REFUSE
    reason: str = ""
    notes: tuple[str, ...] = field(default=())


def read_adapter(folder: Path) -> Adapter:
    """Raises: BadInput where the folder holds no adapter that can be read."""
    try:
        config, headers = read_json(folder / CONFIG), headers_in(folder / WEIGHTS)
        origin = read_json(folder / ORIGIN) if (folder / ORIGIN).is_file() else {}
        kind, targets = config["peft_type"], config.get("target_modules") or ()
    except FileNotFoundError as error:
        raise BadInput(f"{folder} holds no adapter: {error.filename} is missing; train this run again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{folder}: the adapter cannot be read ({error}); train this run again") from error
    if kind != "LORA":
        raise BadInput(f"{folder}: an adapter of type {kind}; LoRA alone can be served, merge it with PEFT first")
    shapes = {name: tuple(facts["shape"]) for name, facts in headers.items()}
    matrices = {name: match for name in shapes if (match := MATRIX.fullmatch(name))}
    ranks = [shapes[n][0] if m[3] == "A" else shapes[n][-1] for n, m in matrices.items() if len(shapes[n]) == 2]
    modules = frozenset(match[1] for match in matrices.values())
    return Adapter(
        folder,
        shapes,
        rank=max(ranks, default=int(config.get("r", 0))),
        alpha=float(config.get("lora_alpha", 0)),
        rslora=bool(config.get("use_rslora")),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        targets=tuple(sorted({name.rpartition(".")[2] for name in modules}) or sorted(targets)),
        features=frozenset(_features(config, shapes)),
        modules=modules,
        base_name=str(origin.get("model") or config.get("base_model_name_or_path") or ""),
        base=BasePrint.from_json(origin),
        method=str(origin.get("method") or "lora"),
        unknown=tuple(key for key in UNKNOWN_SWITCHES if config.get(key))
        + (("target_parameters",) if config.get("target_parameters") else ()),
        num_bytes=(folder / WEIGHTS).stat().st_size,
    )


def _features(config: Mapping[str, Any], shapes: Shapes) -> set[str]:
    found = set()
    if config.get("use_dora") or any(MAGNITUDE.fullmatch(name) for name in shapes):
        found.add("dora")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.add("bias")
    if config.get("trainable_token_indices"):
        found.add("trainable_tokens")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.add("patterns")
    plain = [n for n in shapes if not MATRIX.fullmatch(n) and not MAGNITUDE.fullmatch(n)]
    if any(name.endswith(".bias") for name in plain):
        found.add("bias")
    if any("trainable_tokens" in name for name in plain):
        found.add("trainable_tokens")
    whole = [n for n in plain if not n.endswith(".bias") and "trainable_tokens" not in n]
    if whole or config.get("modules_to_save"):
        found.add("modules_to_save")
    return found


def read_base(model: str) -> Base:
    """A base as it lies on this machine. Raises: ModelError."""
    printed = base_print(model)
    folder = folder_at_hand(model)
    assert folder is not None, "base_print has found it"
    config = read_json(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    is_quantised = bool(config.get("quantization_config"))
    shapes: dict[str, tuple[int, ...]] = {}
    if is_quantised:
        shapes = module_shapes(folder)
    else:
        for file in weight_files(folder):
            shapes |= {name: tuple(facts["shape"]) for name, facts in headers_in(file).items()}
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if tied is None:
        tied = not any(name.endswith("lm_head.weight") for name in shapes)
    limit = text.get("max_position_embeddings") or text.get("n_positions")
    return Base(model, folder, shapes, bool(tied), printed, limit, str(config.get("model_type", "")), is_quantised)


def module_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by the names a loaded model has, which differ from the file's where transformers fuses or renames.

    Nothing is allocated. Raises: ModelError.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_loading(), torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the architecture of {folder} is not known to transformers: {error}") from error
    return {name: tuple(p.shape) for name, p in network.named_parameters(remove_duplicate=False)}


def apart(adapter: Adapter, base: Base) -> list[str]:
    """Each matrix that belongs to no layer of the base, has another size, or lacks its other half."""
    found = _apart(adapter, base.shapes)
    if found and not base.is_quantised:  # the loaded model may call its layers otherwise
        found = _apart(adapter, module_shapes(base.folder))
    return found


def _apart(adapter: Adapter, shapes: Shapes) -> list[str]:
    wrong = []
    halves: dict[str, set[str]] = {}
    for name, shape in adapter.shapes.items():
        if match := MATRIX.fullmatch(name):
            module, is_embedding, half = match[1], bool(match[2]), match[3]
            halves.setdefault(module, set()).add(half)
            weight = shapes.get(f"{module}.weight")
            if weight is None or len(weight) != 2 or len(shape) != 2:
                wrong.append(f"{name} (no such layer)" if weight is None else f"{name} (not a matrix)")
                continue
            outer, inner = weight[::-1] if is_embedding or adapter.fan_in_fan_out else weight
            own, wanted = (shape[1], inner) if half == "A" else (shape[0], outer)
            if own != wanted:
                wrong.append(f"{name} ({own}, the base has {wanted})")
        elif match := MAGNITUDE.fullmatch(name):
            weight = shapes.get(f"{match[1]}.weight")
            if weight is None or shape[0] not in weight:
                wrong.append(f"{name} ({shape[0]}, the base has {weight})")
    wrong += [
        f"{module} (its lora_{'B' if 'A' in half else 'A'} is missing)"
        for module, half in halves.items()
        if len(half) < 2
    ]
    return wrong


def verdict(adapter: Adapter, base: Base, engine: Capability) -> Verdict:
    """What to do with this adapter. Raises: ModelError where the base's architecture is not known."""
    if why := _not_of_base(adapter, base):
        return Verdict(REFUSE, why)
    if adapter.unknown:
        return Verdict(MERGE, f"it uses {', '.join(adapter.unknown)}, which no engine here computes unmerged")
    notes = _notes(adapter, base)
    if adapter.method == "qlora" and not engine.quantised_base:
        return Verdict(
            MERGE,
            f"it was trained and scored on the base in NF4, and {engine.name} holds the base in 16 bits here: another "
            "model, with other answers; merged onto the dequantised weights it answers as scored",
            notes,
        )
    if adapter.method != "qlora" and engine.quantised_base:
        return Verdict(REFUSE, "it was trained on the base in 16 bits, and this server holds it in NF4", notes)
    features = set(adapter.features) | ({"tied_embeddings"} if _is_tied(adapter, base) else set())
    beyond = [FEATURES[name] for name in FEATURES if name in features and not getattr(engine, name)]
    if adapter.rslora and not engine.rslora:
        beyond.append("rsLoRA's scale")
    if not engine.bias and any(n.endswith("lora_B.bias") for n in adapter.shapes) and not _has_biases(adapter, base):
        return Verdict(
            REFUSE,
            f"{engine.name} does not serve {FEATURES['bias']} (lora_bias), and the base has none that they could be "
            "merged into; train without lora_bias",
            notes,
        )
    if beyond:
        return Verdict(MERGE, f"{engine.name} does not serve {', nor '.join(beyond)}", notes)
    if engine.max_rank is not None and adapter.rank > engine.max_rank:
        return Verdict(MERGE, f"rank {adapter.rank} is above {engine.name}'s {engine.max_rank}", notes)
    return Verdict(SERVE, "", notes)


def _is_tied(adapter: Adapter, base: Base) -> bool:
    ends = {module.rpartition(".")[2] for module in adapter.modules}
    return base.is_tied and bool(ends & {"embed_tokens", "lm_head", "wte"})


def _has_biases(adapter: Adapter, base: Base) -> bool:
    return all(f"{module}.bias" in base.shapes for module in adapter.modules)


def _not_of_base(adapter: Adapter, base: Base) -> str:
    """Why an adapter is not this base's; "" where it is, as far as can be told."""
    if not adapter.modules and not adapter.features:
        return "it holds no LoRA matrix; train this run again"
    recorded = adapter.base or _print_by_name(adapter, base)
    if recorded and recorded.weights != base.print.weights:
        return (
            f"it was trained on other weights than {base.model} has here ({adapter.base_name or 'its base'}: "
            f"{recorded.weights[:12]}, here {base.print.weights[:12]}), though layers of equal size would take it; "
            "serve it on the base it was trained on, or train it again on this one"
        )
    if recorded and recorded.tokenizer != base.print.tokenizer:
        return (
            f"it was trained with another tokenizer or chat template than {base.model} has here "
            f"({recorded.tokenizer[:12]}, here {base.print.tokenizer[:12]}): it would be asked in tokens it does not "
            "know; put the tokenizer files back as they were, or train it again"
        )
    if wrong := apart(adapter, base):
        return (
            f"it does not fit {base.model}: {len(wrong)} of its {len(adapter.shapes)} matrices belong to no layer of "
            f"it or differ in size, first {', '.join(wrong[:SHOWN])}; serve it on {adapter.base_name or 'its own base'}"
        )
    return ""


def _print_by_name(adapter: Adapter, base: Base) -> BasePrint | None:
    """The hashes of the base that an adapter without recorded ones names, where that lies on this machine."""
    if adapter.base_name in ("", base.model):
        return None
    try:
        return base_print(adapter.base_name)
    except ModelError:
        return None


def _notes(adapter: Adapter, base: Base) -> tuple[str, ...]:
    if adapter.base is not None:
        return ()
    named = f"it names {adapter.base_name} as its base" if adapter.base_name else "it names no base"
    return (
        f"made before bases were recorded by content: {named}; names and sizes of its matrices alone were compared",
    )


def one_line(verdict: Verdict) -> str:
    """As a table shows it."""
    return f"{verdict.decision}: {verdict.reason}" if verdict.reason else verdict.decision


def base_named(name: str) -> str:
    """The name by which a base is served: as the run has it; a folder goes by its last part."""
    path = Path(resolve_model(name))
    return name if not path.is_dir() or name == path.name or "/" not in str(name) else path.name
