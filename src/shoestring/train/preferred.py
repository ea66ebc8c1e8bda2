"""Of how many held-out pairs a tuned model prefers the chosen answer, and of how many the model it started from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..evaluate.statistics import wilson
from ..files import sha256_file
from ..records import Device, Example, TrainSettings, to_json
from . import loss
from .adapter import adapter_in_16_bit
from .preference import Preference, Tick, log_probs, objective, untold
from .watch import WEIGHTS


def preferred(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: TrainSettings,
    device: Device,
    tick: Tick = untold,
) -> dict[str, Any] | None:
    """Shares of held-out pairs whose chosen answer is preferred, with 95 % intervals; None without a pair.

    log_prob: by the answers' log-probability, over pairs of one prompt. reward: by the implicit reward of the
    objective: the gain over the model training started from, under orpo the mean log-probability of a token. before:
    by the model training started from, None where that is not to be had. model: base with the adapter, evaluating.
    """
    rows = [e for e in examples if e.rejected or (e.desired is not None and settings.objective == "kto")]
    if not rows:
        return None
    judged = objective(tokenizer, rows, settings, "held-out")
    assert isinstance(judged, Preference)
    pairs = judged.pairs(range(len(rows)))
    if not pairs:
        return None
    paths = judged.paths
    shortest = min(paths, key=lambda path: len(path.ids))
    with adapter_in_16_bit(model, device), loss.precision(device):
        batch = loss.on_device(loss.collate([shortest], judged.pad_id), model.device)
        cut: dict[str, Any] = {
            "batch_tokens": settings.micro_batch_tokens,
            "path": loss.choose_path(model, batch),
        }
        after = log_probs(model, paths, judged.pad_id, **cut, tick=tick)
        before = None
        with at_start(model, settings) as is_there:
            if is_there:
                before = log_probs(model, paths, judged.pad_id, **cut)
    known = judged.known(range(len(rows)))
    same = [(a, b) for a, b in pairs if _prompt(paths[a]) == _prompt(paths[b])]
    rewards: dict[str, Any] = {}
    if not judged.has_reference or before is not None:
        known["reference"] = before
        rewards["after"] = _share(judged.rewards(after, known).tolist(), pairs)
    if not judged.has_reference and before is not None:
        rewards["before"] = _share(judged.rewards(before, known).tolist(), pairs)
    return {
        "objective": settings.objective,
        "started_from": settings.start or "the base",
        "num_pairs": len(pairs),
        "num_pairs_of_one_prompt": len(same),
        "log_prob": {
            "before": _share(before.tolist(), same) if before is not None and same else None,
            "after": _share(after.tolist(), same) if same else None,
        },
        "reward": {"before": rewards.get("before"), "after": rewards.get("after")},
    }


def told(found: dict[str, Any]) -> str:
    """One line for a person."""

    def share(value: dict[str, float] | None) -> str:
        return "unknown" if value is None else f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"

    words = [f"{found['num_pairs']} held-out pairs, chosen answer preferred by implicit reward"]
    if found["reward"]["before"] is not None:
        words.append(f"{share(found['reward']['before'])} before and")
    words.append(share(found["reward"]["after"]))
    line = " ".join(words)
    if found["log_prob"]["after"] is not None:
        shares = found["log_prob"]
        line += f"; more probable: {share(shares['before'])} before, {share(shares['after'])} after"
    return line


@contextlib.contextmanager
def at_start(model: Any, settings: TrainSettings) -> Iterator[bool]:
    """The model as training started from it, inside; False where its adapter is gone or another by now."""
    if not hasattr(model, "disable_adapter"):
        yield False
        return
    if not settings.start:
        with model.disable_adapter():
            yield True
        return
    weights = Path(settings.start) / WEIGHTS
    if not weights.is_file() or sha256_file(weights) != settings.start_sha256:
        yield False
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    own = {k: v.detach().clone() for k, v in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    set_peft_model_state_dict(model, load_file(str(weights)))
    try:
        yield True
    finally:
        set_peft_model_state_dict(model, own)


def _prompt(path: Any) -> list[int]:
    ids: list[int] = path.ids[: path.num_prompt_tokens]
    return ids


def _share(values: Sequence[float], pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    estimate: dict[str, float] = to_json(wilson(sum(values[a] > values[b] for a, b in pairs), len(pairs)))
    return estimate
