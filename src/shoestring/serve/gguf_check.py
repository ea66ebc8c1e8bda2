"""GGUF files against transformers: llama-server answers the same token ids, and its numbers are held against ours.

Shapes: P positions at which the next token is asked for, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, ModelError, ShoestringError
from ..evaluate.generation import decode_greedy
from ..records import Device, Example
from ..train.base import load_base, load_tokenizer, quiet_loading, stop_token_ids
from ..train.tokens import Encoded, encode_example
from .gguf import EXACT
from .llamacpp_home import LlamaCpp

START_S, ANSWER_S = 600.0, 600.0
MAX_ROWS, POSITIONS_A_ROW = 16, 8
# Of the tokens that transformers holds likeliest, so many are compared, among so many that llama-server names.
NUM_COMPARED, NUM_NAMED = 5, 50
# 16-bit files: at most this many times the rounding noise (bfloat16 against float32 of one set of weights).
NOISE_TIMES = 3.0
# And at most this share of what training changed; quantised files are other weights and are given more.
EXACT_SHARE, QUANTISED_SHARE = 0.1, 0.5
LEAST_TOP1_FRAC, LEAST_TOP1_QUANTISED_FRAC = 0.95, 0.8
SCRIPT_TEXT = "Don't stop: 12 345\n\n  tabs\there, naïve café, 東京 123 🙂 -- x=[1, 2];\n"


@dataclass(frozen=True, slots=True)
class GgufCheck:
    """One GGUF file, or an adapter on one, against transformers."""

    name: str
    kind: str
    num_texts: int
    num_texts_same_ids: int
    num_positions: int
    mean_abs_logprob_diff: float  # of the likeliest tokens, weighted by their probability
    top1_agreement_frac: float
    greedy_match_frac: float
    noise: float  # the same difference between bfloat16 and float32 in transformers
    effect: float | None  # and between what was trained and the bare base; None: this is the base
    passed: bool
    reason: str


class LlamaServer:
    """A llama-server of one GGUF file for the time of a check: on a socket file of ours, with a key of ours."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, key: str, log: Path, num_adapters: int) -> None:
        self._process, self._address, self._key, self._log = process, address, key, log
        self.num_adapters = num_adapters

    def ids(self, text: str) -> list[int]:
        """Token ids of rendered text; special tokens in it count as such, none is added."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", asked)["tokens"]]

    def starts_itself(self, bos_id: int | None) -> bool:
        """Whether llama.cpp puts the start token before a prompt that is text."""
        asked = {"content": "a", "add_special": True, "parse_special": True}
        ids: list[int] = self._post("/tokenize", asked)["tokens"]
        return ids[:1] == [bos_id]

    def next_token(self, prompt_ids: Sequence[int], adapter: int | None = None) -> dict[int, float]:
        """Log-probabilities of the NUM_NAMED likeliest next tokens, the likeliest first."""
        said = self._complete(prompt_ids, adapter, n_predict=1, n_probs=NUM_NAMED)
        top = said["completion_probabilities"][0]["top_logprobs"]
        return {int(token["id"]): float(token["logprob"]) for token in top}

    def greedy(self, prompt_ids: Sequence[int], num_tokens: int, adapter: int | None = None) -> list[int]:
        """The greedy answer's ids, without its end token."""
        said = self._complete(prompt_ids, adapter, n_predict=num_tokens, return_tokens=True)
        return [int(token) for token in said["tokens"]]

    def _complete(self, prompt_ids: Sequence[int], adapter: int | None, **more: Any) -> dict[str, Any]:
        # A scale for every adapter: one that is left out keeps the scale it was loaded with in some versions.
        scales = [{"id": number, "scale": float(number == adapter)} for number in range(self.num_adapters)]
        asked = {"prompt": list(prompt_ids), "temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "lora": scales}
        return self._post("/completion", {**asked, "cache_prompt": False, **more})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, said = self._ask("POST", path, json.dumps(body))
        if status != 200:
            raise ShoestringError(f"llama-server answered {path} with {status}: {said[:300]}")
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = _OverSocket("localhost", timeout=ANSWER_S)
        connection.at = self._address
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            code = self._process.poll()
            if code is not None:
                raise ShoestringError(f"llama-server ended (status {code}): {self.last_words()}") from error
            raise
        finally:
            connection.close()

    def wait(self) -> None:
        """Until the model is loaded. Raises: ShoestringError."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/health")[0] == 200:
                    return
            if self._process.poll() is not None:
                raise ShoestringError(f"llama-server ended (status {self._process.poll()}): {self.last_words()}")
            time.sleep(0.05)
        raise ShoestringError(f"llama-server has not loaded within {START_S:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """What it said last, for an error."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()[-600:]


class _OverSocket(http.client.HTTPConnection):
    at = ""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.at)


@contextlib.contextmanager
def serving(
    home: LlamaCpp, model: Path, adapters: Sequence[Path] = (), num_threads: int = 1, pre: str = ""
) -> Iterator[LlamaServer]:
    """llama-server with the model and the adapters, numbered as given, none applied unless asked for.

    Keys and values are kept in float32, so that what is compared is the weights. Raises: ShoestringError.
    """
    with tempfile.TemporaryDirectory(prefix="gguf-") as folder:  # short: a socket's path has 107 bytes
        address, key, log = f"{folder}/llama.sock", secrets.token_urlsafe(24), Path(folder) / "log.txt"
        key_file = Path(folder) / "key"
        key_file.write_text(key + "\n")
        key_file.chmod(0o600)
        command = [
            str(home.server), "--model", str(model), "--host", address, "--api-key-file", str(key_file),
            "--threads", str(num_threads), "--parallel", "1", "--no-webui", "--offline", "--flash-attn", "off",
            "--cache-type-k", "f32", "--cache-type-v", "f32", "--cache-ram", "0",
            *(["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"] if adapters else []),
            *(["--override-kv", f"tokenizer.ggml.pre=str:{pre}"] if pre else []),
        ]  # fmt: skip
        with log.open("wb") as told:
            process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            server = LlamaServer(process, address, key, log, len(adapters))
            try:
                server.wait()
                yield server
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()


@dataclass(frozen=True, slots=True)
class Said:
    """What one set of weights says: log-probabilities at each position, and greedy answers."""

    logprobs_PV: Any
    texts: list[list[int]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Held-out rows as both are asked about them, and what belongs to their tokenizer."""

    rows: list[Encoded]
    texts: list[str]
    tokenizer: Any

    def prompts(self) -> list[list[int]]:
        return [row.ids[: row.num_prompt_tokens] for row in self.rows]

    def prefixes(self) -> list[list[int]]:
        """Up to each of the first answer tokens."""
        return [row.ids[:stop] for row in self.rows for stop in range(row.num_prompt_tokens, last_position(row))]

    def num_new_tokens(self) -> int:
        return max(len(row.ids) - row.num_prompt_tokens for row in self.rows) + 4


def last_position(row: Encoded) -> int:
    """One past the last answer token that is asked for."""
    return min(len(row.ids), row.num_prompt_tokens + POSITIONS_A_ROW)


def rows_of(model: str, examples: Sequence[Example]) -> Rows:
    """The first rows, rendered and tokenised as for training. Raises: BadInput where there is none."""
    if not examples:
        raise BadInput("a GGUF file is checked on held-out rows, and none were given")
    tokenizer = load_tokenizer(model)
    rows = [encode_example(tokenizer, example) for example in examples[:MAX_ROWS]]
    return Rows(rows, [tokenizer.decode(row.ids) for row in rows], tokenizer)


def said_by(model: Any, asked: Rows, texts: bool = True) -> Said:
    """Transformers' numbers at the positions, and its greedy answers."""
    import torch

    logprobs = []
    with torch.no_grad():
        for row in asked.rows:
            ids_1T = torch.tensor([row.ids[: last_position(row) - 1]], device=model.device)
            logits_PV = model(ids_1T).logits[0, row.num_prompt_tokens - 1 :].float().cpu()
            logprobs.append(logits_PV.log_softmax(-1))
    if not texts:
        return Said(torch.cat(logprobs), [])
    answers = decode_greedy(
        model,
        asked.prompts(),
        stop_ids=stop_token_ids(asked.tokenizer, model),
        pad_id=asked.tokenizer.pad_token_id,
        max_new_tokens=asked.num_new_tokens(),
    )
    return Said(torch.cat(logprobs), [tokens for tokens, _ in answers])


def difference(reference: Said, other: Said | Sequence[dict[int, float]]) -> tuple[float, float]:
    """Mean |Δ log-probability| of the reference's likeliest tokens, weighted by probability; same first choice, 0-1.

    A token that llama-server does not name is taken as likely as the last it names: the true difference is larger.
    """
    total, same = 0.0, 0
    num = len(reference.logprobs_PV)
    for index in range(num):
        values, tokens = reference.logprobs_PV[index].topk(NUM_COMPARED)
        if isinstance(other, Said):
            theirs = other.logprobs_PV[index][tokens].tolist()
            first = int(other.logprobs_PV[index].argmax())
        else:
            named = other[index]
            least = min(named.values())
            theirs = [named.get(int(token), least) for token in tokens]
            first = next(iter(named))
        weights = values.exp()
        gaps = (values - values.new_tensor(theirs)).abs()
        total += float((weights * gaps).sum() / weights.sum())
        same += first == int(tokens[0])
    return total / num, same / num


def judge(check: GgufCheck) -> GgufCheck:
    """With its verdict, and what failed in words."""
    gap, top1, is_exact = check.mean_abs_logprob_diff, check.top1_agreement_frac, check.kind in EXACT
    reasons = []
    if check.num_texts_same_ids < check.num_texts:
        other = check.num_texts - check.num_texts_same_ids
        reasons.append(f"llama.cpp splits {other} of {check.num_texts} texts into other tokens")
    if is_exact and gap > NOISE_TIMES * check.noise:
        reasons.append(
            f"log-probabilities are off by {gap:.2g}, over {NOISE_TIMES:g} times rounding ({check.noise:.2g})"
        )
    if check.effect is not None and gap > (EXACT_SHARE if is_exact else QUANTISED_SHARE) * check.effect:
        reasons.append(f"log-probabilities are off by {gap:.2g}, and training changed them by {check.effect:.2g}")
    least = LEAST_TOP1_FRAC if is_exact else LEAST_TOP1_QUANTISED_FRAC
    if top1 < least:
        reasons.append(f"the first choice is the same at {top1:.1%} of positions, less than {least:.0%}")
    return dataclasses.replace(check, passed=not reasons, reason="; ".join(reasons))


def compare(
    name: str, kind: str, server: LlamaServer, asked: Rows, reference: Said, noise: float, effect: float | None,
    adapter: int | None = None,
) -> GgufCheck:  # fmt: skip
    """Ask llama-server what transformers was asked, and judge."""
    gap, top1 = difference(reference, [server.next_token(ids, adapter) for ids in asked.prefixes()])
    answers = [server.greedy(ids, asked.num_new_tokens(), adapter) for ids in asked.prompts()]
    greedy = sum(a == b for a, b in zip(answers, reference.texts, strict=True)) / len(answers)
    texts = [SCRIPT_TEXT, *asked.texts]
    same = sum(server.ids(text) == asked.tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    return judge(
        GgufCheck(name, kind, len(texts), same, len(reference.logprobs_PV), gap, top1, greedy, noise, effect, False, "")
    )


def check_model(
    gguf: Path, kind: str, folder: str, home: LlamaCpp, *, device: Device, examples: Sequence[Example], base: str = ""
) -> GgufCheck:
    """A model's GGUF file against the folder it was made of; base: what it was trained from, empty if it is the base.

    Raises: ShoestringError, BadInput.
    """
    asked = rows_of(folder, examples)
    exact, half = _in(device, "float32"), _in(device, "bfloat16")
    reference = said_by(load_base(folder, device=exact), asked)
    noise = difference(reference, said_by(load_base(folder, device=half), asked, texts=False))[0]
    effect = difference(reference, said_by(load_base(base, device=exact), asked, texts=False))[0] if base else None
    with serving(home, gguf, num_threads=threads()) as server:
        return compare(gguf.name, kind, server, asked, reference, noise, effect)


def check_adapters(
    gguf: Path, kind: str, model: str, adapters: Mapping[str, tuple[Path, Path]], home: LlamaCpp, *, device: Device,
    examples: Sequence[Example],
) -> list[GgufCheck]:  # fmt: skip
    """The base's GGUF file and each adapter on it in one llama-server, against transformers with PEFT.

    adapters: by name, the folder in PEFT's form and the GGUF file. Raises: ShoestringError, BadInput.
    """
    from peft import PeftModel

    asked = rows_of(model, examples)
    exact, half = _in(device, "float32"), _in(device, "bfloat16")
    bare = said_by(load_base(model, device=exact), asked)
    noise = difference(bare, said_by(load_base(model, device=half), asked, texts=False))[0]
    with serving(home, gguf, [file for _, file in adapters.values()], threads()) as server:
        checks = [compare(gguf.name, kind, server, asked, bare, noise, None)]
        for number, (name, (folder, _)) in enumerate(adapters.items()):
            with quiet_loading():
                adapted = PeftModel.from_pretrained(load_base(model, device=exact), str(folder)).eval()
            reference = said_by(adapted, asked)
            effect = difference(reference, bare)[0]
            checks.append(compare(name, kind, server, asked, reference, noise, effect, number))
    return checks


def _in(device: Device, dtype: str) -> Device:
    return dataclasses.replace(device, dtype=dtype)


def threads() -> int:
    """As many as torch takes, and so as OMP_NUM_THREADS says."""
    import torch

    return int(torch.get_num_threads())


def require(check: GgufCheck) -> None:
    """Raises: ModelError where the file is not what was trained."""
    if not check.passed:
        raise ModelError(f"{check.name} as GGUF ({check.kind}) is refused: {check.reason}")
