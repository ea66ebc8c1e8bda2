"""A local sentence model as a function from texts to vectors: transformers, pooled as its folder says.

B texts of a batch, T tokens, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..files import read_json
from ..records import Device
from .base import quiet_loading
from .locate import first_line

BATCH_TEXTS = 32
MAX_TOKENS = 512  # where the model states no limit; longer texts are cut
POOLING = "1_Pooling/config.json"  # as sentence-transformers lays a model out
PROMPTS = "config_sentence_transformers.json"

Encode = Callable[[Sequence[str], bool], np.ndarray]


def load_encoder(folder: Path, device: Device) -> Encode:
    """encode(texts, are_questions) -> (B, D) vectors, not yet of unit length.

    The mean over the tokens of a text, or the first one where the folder's pooling says cls. Prefixes for questions
    and texts are taken from the folder where it has any. Raises: ModelError.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ModelError(f"retrieval.embeddings: {folder} holds no config.json; give the folder of a sentence model")
    pooling = read_json(folder / POOLING) if (folder / POOLING).is_file() else {"pooling_mode_mean_tokens": True}
    modes = [name for name, is_on in pooling.items() if name.startswith("pooling_mode_") and is_on is True]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ModelError(
            f"retrieval.embeddings: {folder / POOLING} pools by {', '.join(modes) or 'nothing'}, and mean or cls alone "
            "is known; choose another sentence model"
        )
    prefixes = _prefixes(folder)
    try:
        with quiet_loading():
            tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"retrieval.embeddings: {folder} cannot be loaded: {first_line(error)}") from error
    model.eval().to("cuda:0" if device.kind == "cuda" else device.kind)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = min(getattr(model.config, "max_position_embeddings", MAX_TOKENS), MAX_TOKENS)

    def encode(texts: Sequence[str], are_questions: bool) -> np.ndarray:
        prefixed = [prefixes[are_questions] + text for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(prefixed[i]))
        vectors: dict[int, np.ndarray] = {}
        for start in range(0, len(order), BATCH_TEXTS):
            batch = order[start : start + BATCH_TEXTS]
            inputs = tokenizer(
                [prefixed[i] for i in batch], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(model.device)
            with torch.no_grad():
                hidden_BTD = model(**inputs).last_hidden_state
            if modes == ["pooling_mode_cls_token"]:
                pooled_BD = hidden_BTD[:, 0]
            else:
                mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
                pooled_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            vectors.update(zip(batch, pooled_BD.float().cpu().numpy(), strict=True))
        return np.stack([vectors[i] for i in range(len(texts))])

    return encode


def _prefixes(folder: Path) -> dict[bool, str]:
    """What goes before a question (True) and a text (False)."""
    told = read_json(folder / PROMPTS).get("prompts", {}) if (folder / PROMPTS).is_file() else {}
    return {True: told.get("query", ""), False: told.get("document", told.get("passage", ""))}
