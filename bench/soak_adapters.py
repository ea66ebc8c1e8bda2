"""Adapters that know a few prompts by heart, each with answers of its own, so that a crossed answer is seen."""

from __future__ import annotations

import json
from pathlib import Path

from shoestring.records import Device

CPU = Device("cpu", "cpu", 1 << 34, 1, "float32", "for training by heart")
NAMES = ("north", "south", "east", "west")
NUM_PROMPTS = 6
RANK, RATE, MAX_STEPS, LOSS_ENOUGH = 8, 1e-2, 400, 0.003
MODEL = "shoestring-1m"


def prompts() -> list[str]:
    """What clients ask."""
    things = ("parcel", "invoice", "ticket", "refund", "order", "account")
    return [f"What is the code of the {thing}?" for thing in things[:NUM_PROMPTS]]


def answers(name: str) -> list[str]:
    """What the adapter of that name says to each prompt: no two answers of any two adapters are alike."""
    place = NAMES.index(name)
    return [
        f'{{"{name}": {100 * place + 7 * i + 11}, "next": "{name} {chr(97 + i)}{place}"}}' for i in range(NUM_PROMPTS)
    ]


def learn(name: str, folder: Path) -> Path:
    """Train until every answer is known by heart. Raises: RuntimeError where it is not after MAX_STEPS."""
    import torch
    from peft import LoraConfig, get_peft_model

    from shoestring.train.base import load_base, load_tokenizer, quiet_loading, stop_token_ids

    torch.manual_seed(NAMES.index(name))
    tokenizer = load_tokenizer(MODEL)
    wanted = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet_loading():
        tuned = get_peft_model(load_base(MODEL, device=CPU), wanted)
    stop = stop_token_ids(tokenizer, tuned)[0]
    rows = []
    for prompt, answer in zip(prompts(), answers(name), strict=True):
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        said = [*tokenizer.encode(answer, add_special_tokens=False), stop]
        rows.append((list(asked), said))
    longest = max(len(a) + len(s) for a, s in rows)
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    labels_BT = torch.full_like(ids_BT, -100)
    mask_BT = torch.zeros_like(ids_BT)
    for i, (asked, said) in enumerate(rows):
        num = len(asked) + len(said)
        ids_BT[i, :num] = torch.tensor(asked + said)
        labels_BT[i, len(asked) : num] = torch.tensor(said)
        mask_BT[i, :num] = 1
    optimizer = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=RATE)
    loss = torch.tensor(float("inf"))
    for _ in range(MAX_STEPS):
        loss = tuned(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        if loss.item() < LOSS_ENOUGH:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise RuntimeError(f"{name} does not know its answers after {MAX_STEPS} steps: loss {loss.item():.3f}")
    with quiet_loading():
        tuned.save_pretrained(folder)
    return folder


def make_runs(runs_dir: Path, num: int = len(NAMES)) -> list[Path]:
    """A run folder each, as training leaves them."""
    from tests.served_runs import make_run

    made = []
    for name in NAMES[:num]:
        folder = runs_dir / name
        made.append(make_run(runs_dir, name, MODEL, made=learn(name, folder / "made")))
    return made


if __name__ == "__main__":
    import sys
    import time

    started_s = time.monotonic()
    for folder in make_runs(Path(sys.argv[1])):
        print(folder, round(time.monotonic() - started_s, 1), "s")
    print(json.dumps({name: answers(name) for name in NAMES}, indent=1))
