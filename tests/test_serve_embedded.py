"""The embedded engine: what it answers is what transformers and PEFT answer, however requests are mixed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from shoestring.records import Device
from shoestring.serve.engine import BASE, Ask, Piece, Sampling

CPU = Device("cpu", "cpu", 1 << 34, 1, "float32", "a test")
ADAPTERS = {
    "one": {},
    "two": {"r": 4},
    "roots": {"use_rslora": True, "r": 9},
    "few": {"target_modules": ["q_proj", "down_proj"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and adapters of several kinds that change what it says."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder / "base")
    for number, (name, more) in enumerate(ADAPTERS.items()):
        make_adapter(folder / "base", folder / name, number, **more)
    return folder


def make_adapter(model: Path, folder: Path, seed: int, **more: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model

    from shoestring.train.base import load_base, quiet_loading

    torch.manual_seed(seed)
    options = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **more}
    with quiet_loading():
        tuned = get_peft_model(load_base(str(model), device=CPU), LoraConfig(**options))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(folder)
    return folder


def theirs(home: Path, adapter: str, prompts: Sequence[Sequence[int]], num_new: int) -> list[list[int]]:
    """Greedy tokens of transformers with PEFT's adapter."""
    import torch
    from peft import PeftModel

    from shoestring.train.base import load_base, quiet_loading

    model = load_base(str(home / "base"), device=CPU)
    with quiet_loading():
        tuned = PeftModel.from_pretrained(model, str(home / adapter)) if adapter else model
    answers = []
    for prompt in prompts:
        made = tuned.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, max_new_tokens=num_new, pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        answers.append(made[0, len(prompt) :].tolist())
    return answers


async def opened(home: Path, **more: Any) -> Any:
    from shoestring.serve.engines.embedded import open_embedded

    engine = await open_embedded(str(home / "base"), device=CPU, **more)
    engine.loop.stop_ids = frozenset()  # answers of random weights shall be long
    for name in ADAPTERS:
        await engine.load(name, home / name)
    return engine


async def answer(engine: Any, adapter: str, prompt: Sequence[int], num_new: int = 16, **more: Any) -> list[Piece]:
    ask = Ask("a", adapter, tuple(prompt), Sampling(num_new, **more), is_streamed=True)
    return [piece async for piece in engine.generate(ask)]


def ids_of(pieces: Sequence[Piece]) -> list[int]:
    return [token.id for piece in pieces for token in piece.tokens]


def prompts_of(*texts: str) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


PROMPTS = prompts_of(
    "once upon a time there was",
    "once upon a time",
    "once upon a hill the wolf",
    "x",
    "quite another text, longer than the others are",
)


def test_mixed_requests_are_answered_as_by_peft(home: Path) -> None:
    """Five prompts by the base and four adapters at once, in 3 places: each as alone in transformers."""

    async def all_at_once() -> dict[tuple[str, int], list[Piece]]:
        engine = await opened(home, max_rows=3)
        try:
            keys = [(adapter, i) for i in range(len(PROMPTS)) for adapter in (BASE, *ADAPTERS)]
            done = await asyncio.gather(*(answer(engine, a, PROMPTS[i], 12 + i) for a, i in keys))
            return dict(zip(keys, done, strict=True))
        finally:
            await engine.close()

    found = asyncio.run(all_at_once())
    for adapter in (BASE, *ADAPTERS):
        wanted = theirs(home, adapter, PROMPTS, 12 + len(PROMPTS) - 1)
        for i, tokens in enumerate(wanted):
            pieces = found[adapter, i]
            assert ids_of(pieces) == tokens[: 12 + i], (adapter, i)
            assert [piece.finish for piece in pieces] == [""] * (len(pieces) - 1) + ["length"]
    answers = {tuple(ids_of(found[adapter, 0])) for adapter in (BASE, *ADAPTERS)}
    assert len(answers) == len(ADAPTERS) + 1, "the adapters change the answer"
