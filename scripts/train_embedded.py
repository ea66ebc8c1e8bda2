"""Train one model of the embedded family from scratch, on CPU or GPU, within a time budget.

    python scripts/corpus.py --out /tmp/embedded_corpus --shards 8
    python scripts/train_embedded.py --model 5m --minutes 90 --run /tmp/embedded_run/5m
    python scripts/train_embedded.py --model 5m --run /tmp/embedded_run/5m --export src/shoestring/embedded/shoestring-5m

Interrupted, the second command continues from its checkpoint and counts only the time it spent
training. The learning rate warms up, stays, and falls to zero over the last DECAY_FRAC of the
budget. The third command writes what the checkpoint holds, without training.

Shapes: B rows, T tokens.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIZES = {
    "1m": dict(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2, intermediate_size=352
    ),
    "3m": dict(
        hidden_size=192, num_hidden_layers=5, num_attention_heads=3, num_key_value_heads=3, intermediate_size=512
    ),
    "5m": dict(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, intermediate_size=640
    ),
}
HEAD_DIM = 64
VOCAB_SIZE = 4096
CONTEXT_TOKENS = 1024
SHORT_ROW_TOKENS = 256
NUM_SPECIAL_TOKENS, ASSISTANT_ID = 6, 4
ANSWER_WEIGHT = 3.0
LONG_STEP_EVERY = 8  # steps; the others take rows of SHORT_ROW_TOKENS
STEP_TOKENS = {"cpu": 4096, "cuda": 32768}
MUON_LR, ADAMW_LR = 2.5e-3, 2e-3
WEIGHT_DECAY = 0.1
WARMUP_FRAC, DECAY_FRAC = 0.02, 0.25
CLIP_NORM = 1.0
CHECKPOINT_EVERY_S, HELDOUT_EVERY_S, LOG_EVERY_STEPS = 150, 300, 50
SEED = 0


def build_model(size: str) -> LlamaForCausalLM:
    """A freshly initialised model of the family; output projections start smaller, with depth."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=5,
        initializer_range=0.02,
        **SIZES[size],
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data /= (2 * config.num_hidden_layers) ** 0.5
    return model


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "embed" not in name]
    rest = [w for name, w in model.named_parameters() if not (w.ndim == 2 and "embed" not in name)]
    return [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def lr_scale(done_frac: float) -> float:
    """Share of the peak learning rate after done_frac (0-1) of the time budget."""
    return max(0.0, min(1.0, done_frac / WARMUP_FRAC, (1 - done_frac) / DECAY_FRAC))


class Rows:
    """Batches from the corpus shards in order, over and over; `position` is all its state.

    Shards that appear while training runs are used when their turn comes.
    """

    def __init__(self, corpus: Path, row_tokens: int, step_tokens: int) -> None:
        self.corpus, self.row_tokens, self.num_rows = corpus, row_tokens, step_tokens // row_tokens
        self.position = [0, 0]  # shard, row
        self.loaded: tuple[Path, np.ndarray] | None = None

    def next(self) -> torch.Tensor:
        while True:
            shards = sorted(self.corpus.glob(f"shard_*_{self.row_tokens}.npy"))
            shard = shards[self.position[0] % len(shards)]
            if self.loaded is None or self.loaded[0] != shard:
                self.loaded = (shard, np.load(shard, mmap_mode="r"))
            rows_NT, start = self.loaded[1], self.position[1]
            if start + self.num_rows <= len(rows_NT):
                self.position[1] += self.num_rows
                return torch.from_numpy(rows_NT[start : start + self.num_rows].astype(np.int64))
            self.position = [self.position[0] + 1, 0]


def loss_weights(ids_BT: torch.Tensor) -> torch.Tensor:
    """ANSWER_WEIGHT for what an assistant turn says (its <|end|> included), 1 elsewhere.

    The prompts of generated tasks are random words nobody can predict; the answers can be.
    """
    positions_T = torch.arange(ids_BT.shape[1] - 1, device=ids_BT.device)
    inputs_BT = ids_BT[:, :-1]
    last_special_BT = torch.where(inputs_BT < NUM_SPECIAL_TOKENS, positions_T, 0).cummax(dim=1).values
    in_answer_BT = inputs_BT.gather(1, last_special_BT) == ASSISTANT_ID
    return torch.where(in_answer_BT, ANSWER_WEIGHT, 1.0)


def loss_of(model: LlamaForCausalLM, ids_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Weighted mean next-token loss over all tokens."""
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    losses_N = F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return (losses_N * weights_BT.flatten()).sum() / weights_BT.sum()


def heldout_losses(loss_fn, model: LlamaForCausalLM, corpus: Path, device: str) -> dict[str, float]:
    """Unweighted loss on documents the training never sees, by component."""
    model.eval()
    losses = {}
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        for part in ("text", "tasks"):
            rows_NT = torch.from_numpy(np.load(corpus / f"heldout_{part}.npy").astype(np.int64)).to(device)
            batches = rows_NT[: len(rows_NT) // 16 * 16].split(16)
            losses[part] = sum(
                loss_fn(model, batch, torch.ones_like(batch[:, 1:], dtype=torch.float32)).item() for batch in batches
            ) / len(batches)
    model.train()
    return losses


def save_checkpoint(run: Path, state: dict) -> None:
    """Write checkpoint.pt whole or not at all."""
    partial = run / "checkpoint.partial"
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(run / "checkpoint.pt")


def export(state: dict, size: str, corpus: Path, folder: Path) -> None:
    """bf16 safetensors, configuration, generation defaults and tokenizer, by rename."""
    model = build_model(size)
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16)
    # The family's default is greedy and stops at <|end|>.
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=5, pad_token_id=0, do_sample=False, max_new_tokens=128
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    model.save_pretrained(partial)
    PreTrainedTokenizerFast.from_pretrained(corpus / "tokenizer").save_pretrained(partial)
    # transformers 4 knows neither the class nor the list that transformers 5 writes; both read this.
    config_path = partial / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    config_path.write_text(json.dumps(config, indent=2) + "\n")
    facts = {
        "tokens_seen": state["tokens_seen"],
        "train_s": round(state["elapsed_s"]),
        "heldout_loss": state["heldout"],
        "num_params": model.num_parameters(),
    }
    (partial / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    partial.chmod(0o755)
    for file in partial.iterdir():
        file.chmod(0o644)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)
    print(f"exported {folder}: {facts}", flush=True)


def train(size: str, minutes: float, run: Path, corpus: Path, compile_model: bool = True) -> dict:
    """Train to the end of the budget; returns the last checkpoint's state."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget_s = minutes * 60
    model = build_model(size).to(device).train()
    optimizers = build_optimizers(model)
    peaks = [group["lr"] for opt in optimizers for group in opt.param_groups]
    short, long = (Rows(corpus, n, STEP_TOKENS[device]) for n in (SHORT_ROW_TOKENS, CONTEXT_TOKENS))
    state = {"step": 0, "elapsed_s": 0.0, "tokens_seen": 0, "heldout": {}}
    run.mkdir(parents=True, exist_ok=True)
    if (run / "checkpoint.pt").exists():
        saved = torch.load(run / "checkpoint.pt", map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, opt_state in zip(optimizers, saved["optimizers"]):
            opt.load_state_dict(opt_state)
        short.position, long.position = saved["positions"]
        torch.set_rng_state(saved["rng"].cpu())
        state = {key: saved[key] for key in state}
        print(f"resumed at step {state['step']}, {state['elapsed_s'] / 60:.1f} of {minutes} minutes", flush=True)
    # Two compiled row lengths; dynamic shapes would cost speed on both.
    loss_fn = torch.compile(loss_of, dynamic=False) if compile_model else loss_of

    def snapshot() -> dict:
        return {
            **state,
            "model": model.state_dict(),
            "optimizers": [opt.state_dict() for opt in optimizers],
            "positions": [short.position, long.position],
            "rng": torch.get_rng_state(),
        }

    # Compilation does not count against the budget.
    with torch.autocast(device, dtype=torch.bfloat16):
        for row_tokens in (SHORT_ROW_TOKENS, CONTEXT_TOKENS):
            ids_BT = torch.ones(STEP_TOKENS[device] // row_tokens, row_tokens, dtype=torch.long, device=device)
            loss_fn(model, ids_BT, loss_weights(ids_BT)).backward()
    model.zero_grad(set_to_none=True)
    print(f"{size}: {model.num_parameters():,} parameters on {device}, compiled", flush=True)
    last_checkpoint = last_heldout = mark = time.monotonic()
    mark_tokens, running = state["tokens_seen"], None
    while state["elapsed_s"] < budget_s:
        started = time.monotonic()
        scale = lr_scale(state["elapsed_s"] / budget_s)
        for group, peak in zip((g for opt in optimizers for g in opt.param_groups), peaks):
            group["lr"] = peak * max(scale, 1e-3)
        ids_BT = (long if state["step"] % LONG_STEP_EVERY == LONG_STEP_EVERY - 1 else short).next().to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_fn(model, ids_BT, loss_weights(ids_BT))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        for opt in optimizers:
            opt.step()
            opt.zero_grad(set_to_none=True)
        running = loss.item() if running is None else 0.97 * running + 0.03 * loss.item()
        state["step"] += 1
        state["tokens_seen"] += ids_BT.numel()
        now = time.monotonic()
        state["elapsed_s"] += now - started
        if state["step"] % LOG_EVERY_STEPS == 0:
            print(
                f"step {state['step']} {state['elapsed_s'] / 60:.1f}min {state['tokens_seen'] / 1e6:.2f}M tokens {(state['tokens_seen'] - mark_tokens) / (now - mark):.0f} tok/s loss {running:.3f} lr x{scale:.2f}",
                flush=True,
            )
            mark, mark_tokens = now, state["tokens_seen"]
        if now - last_heldout > HELDOUT_EVERY_S:
            state["heldout"] = heldout_losses(loss_fn, model, corpus, device)
            print("held-out " + " ".join(f"{k} {v:.3f}" for k, v in state["heldout"].items()), flush=True)
            last_heldout = mark = time.monotonic()
            mark_tokens = state["tokens_seen"]
        if now - last_checkpoint > CHECKPOINT_EVERY_S:
            save_checkpoint(run, snapshot())
            last_checkpoint = mark = time.monotonic()
            mark_tokens = state["tokens_seen"]
    state["heldout"] = heldout_losses(loss_fn, model, corpus, device)
    save_checkpoint(run, snapshot())
    print(f"done: {state}", flush=True)
    return snapshot()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=SIZES, required=True)
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="training time in all, across resumptions; 0 trains nothing"
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--corpus", type=Path, default=Path("/tmp/embedded_corpus"))
    parser.add_argument("--export", type=Path, help="write the model here at the end")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.minutes:
        state = train(args.model, args.minutes, args.run, args.corpus)
    else:
        state = torch.load(args.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    if args.export:
        export(state, args.model, args.corpus, args.export)


if __name__ == "__main__":
    main()
