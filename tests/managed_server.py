"""A fine-tuning service on the loopback: Together's, OpenAI's, Nebius's and Fireworks' documented shapes.

It keeps every request and, apart, every order of a job; faults are put in by path. A job goes one state on each time
it is asked for. It counts a token for four characters and five a turn, at DOLLARS_PER_MILLION.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.loopback import LoopbackServer, QuietHandler

DOLLARS_PER_MILLION = 0.50
NUM_EPOCHS_KEYS = ("n_epochs", "epochs")
STATES = {
    "together": ("pending", "queued", "running", "compressing", "uploading", "completed"),
    "openai": ("validating_files", "queued", "running", "succeeded"),
    "fireworks": ("JOB_STATE_CREATING", "JOB_STATE_RUNNING", "JOB_STATE_WRITING_RESULTS", "JOB_STATE_COMPLETED"),
}
FAILED = {"together": "error", "openai": "failed", "fireworks": "JOB_STATE_FAILED"}
CANCELLED = {"together": "cancelled", "openai": "cancelled", "fireworks": "JOB_STATE_CANCELLED"}
REASON = "row 3 has no assistant turn"


@dataclass
class Job:
    """One job there."""

    id: str
    tag: str
    body: dict[str, Any]
    num_tokens: int
    place: int = 0  # in STATES
    said: str = ""  # failed or cancelled


@dataclass
class File:
    """One file there."""

    id: str
    name: str
    content: bytes = b""
    polls: int = 0
    is_whole: bool = False


@dataclass
class Fault:
    """What happens at a path, so many times.

    kind: status, drop (unheard), lose (done, unanswered), hang (done, and silent until the client gives up), html, cut.
    """

    method: str
    path: str  # a regular expression
    kind: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


class ManagedServer(LoopbackServer):
    """The service of one vendor: together, openai, nebius or fireworks."""

    def __init__(self, vendor: str, weights: dict[str, bytes] | None = None) -> None:
        self.vendor = vendor
        self.sdk = "openai" if vendor == "nebius" else vendor
        self.files: dict[str, File] = {}
        self.jobs: dict[str, Job] = {}
        self.creates: list[dict[str, Any]] = []  # orders that reached the service, refused ones apart
        self.requests: list[tuple[str, str, str]] = []  # method, path, key
        self.faults: list[Fault] = []
        self.fails = False
        self.refuses_file = ""
        self.weights = weights or {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 40}
        self.packed = b""  # an archive as it is, in place of one made of weights
        self.list_lags = 0  # so many listings do not show the newest job yet
        self.lock = threading.Lock()
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:
                server.handle(self, "GET")

            def do_POST(self) -> None:
                server.handle(self, "POST")

            def do_PUT(self) -> None:
                server.handle(self, "PUT")

        self.serve(Handler)
        self.root = self.url.removesuffix("/v1")
        # What --on VENDOR:ADDRESS is given: the SDKs of Together and Fireworks add /v1 themselves.
        self.address = self.url if self.sdk == "openai" else self.root

    def fault(self, method: str, path: str, kind: str, **more: Any) -> None:
        """Put a fault in."""
        self.faults.append(Fault(method, path, kind, **more))

    def count(self, method: str, path: str) -> int:
        """Requests that came for a path, a regular expression."""
        return sum(m == method and re.fullmatch(path, p) is not None for m, p, _ in self.requests)

    # ---- HTTP

    def handle(self, http: QuietHandler, method: str) -> None:
        body = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        if http.headers.get("Transfer-Encoding") == "chunked":
            body = _chunks(http.rfile)
        parts = urlsplit(http.path)
        path = parts.path
        with self.lock:
            key = (http.headers.get("Authorization") or "").removeprefix("Bearer ")
            self.requests.append((method, path, key))
            fault = next((f for f in self.faults if f.times and f.method == method and re.search(f.path, path)), None)
            if fault:
                fault.times -= 1
            if fault and fault.kind == "drop":
                return _hang_up(http)
            if fault and fault.kind == "status":
                return self.json(http, {"error": {"message": "slow down"}}, fault.status, fault.headers)
            if fault and fault.kind == "html":
                return http.answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
            answer = self.answer(method, path, parse_qs(parts.query), body, http.headers)
        if fault and fault.kind == "hang":
            http.rfile.read(1)  # returns when the client gives up
            return _hang_up(http)
        if fault and fault.kind == "lose":
            return _hang_up(http)
        if isinstance(answer, bytes):
            return self.send_bytes(http, answer, fault.num_bytes if fault else None)
        if isinstance(answer, tuple):
            return self.json(http, *answer)
        return self.json(http, answer)

    def json(self, http: QuietHandler, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        http.answer(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def send_bytes(self, http: QuietHandler, data: bytes, cut: int | None) -> None:
        """Whole or from the byte asked for; cut: hang up after so many."""
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", http.headers.get("Range", ""))
        same = http.headers.get("If-Range") in (None, etag)
        start = int(wanted[1]) if wanted and same else 0
        headers = {"ETag": etag, "Content-Type": "application/x-tar", "Content-Length": str(len(data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        sent = data[start:] if cut is None else data[start : start + cut]
        http.answer(206 if start else 200, headers, sent)
        if len(sent) < len(data) - start:
            _hang_up(http)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes, headers: Any) -> Any:
        """JSON, (JSON, status, headers), or the bytes of a file."""
        return getattr(self, f"_{self.sdk}")(method, path, query, body, headers)

    # ---- what they share

    def tokens_of(self, file_id: str) -> int:
        rows = [json.loads(line) for line in self.files[file_id].content.splitlines()]
        said = [r.get("messages") or [*r["input"]["messages"], *r["preferred_output"]] for r in rows]
        turns = [turn for row in said for turn in row]
        return sum(len(turn["content"]) // 4 + 5 for turn in turns)

    def advance(self, job: Job) -> Job:
        """One state on, or to its failure."""
        if not job.said:
            job.place = min(job.place + 1, len(STATES[self.sdk]) - 1)
            if self.fails and job.place >= 2:
                job.said = FAILED[self.sdk]
        return job

    def state(self, job: Job) -> str:
        return job.said or STATES[self.sdk][job.place]

    def ended(self, job: Job) -> bool:
        return bool(job.said) or job.place == len(STATES[self.sdk]) - 1

    def order(self, job_id: str, tag: str, body: dict[str, Any], file_id: str, headers: Any) -> Job:
        self.creates.append({"tag": tag, "body": body, "key": headers.get("Idempotency-Key")})
        epochs = next((int(v) for k in NUM_EPOCHS_KEYS for v in re.findall(rf'"{k}": (\d+)', json.dumps(body))), 1)
        job = self.jobs[job_id] = Job(job_id, tag, body, self.tokens_of(file_id) * epochs)
        return job

    def listed(self) -> list[Job]:
        found = list(self.jobs.values())
        if self.list_lags and found:
            self.list_lags -= 1
            found = found[:-1]
        return found

    def archive(self) -> bytes:
        if self.packed:
            return self.packed
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for name, content in self.weights.items():
                member = tarfile.TarInfo(f"adapter/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return gzip.compress(data.getvalue(), mtime=0)

    # ---- Together

    def _together(self, method: str, path: str, query: Any, body: bytes, headers: Any) -> Any:
        if path == "/v1/files" and method == "GET":
            return {"data": [self._together_file(f) for f in self.files.values() if f.is_whole]}
        if path == "/v1/files":
            text = body.decode("utf-8", "replace")
            checksum = re.findall(r"[0-9a-f]{64}", text)[0]
            name = re.findall(r"shoestring-[0-9a-f]+\.jsonl", text)[0]
            for file in self.files.values():
                if file.is_whole and hashlib.sha256(file.content).hexdigest() == checksum:
                    return {"file_id": file.id}, 409
            file = File(f"file-{len(self.files) + 1}", name)
            self.files[file.id] = file
            return {}, 302, {"Location": f"{self.root}/put/{file.id}", "X-Together-File-Id": file.id}
        if match := re.fullmatch(r"/put/(.+)", path):
            self.files[match[1]].content = body
            return {}
        if match := re.fullmatch(r"/v1/files/([^/]+)(/preprocess)?", path):
            file = self.files[match[1]]
            file.is_whole = True
            file.polls += method == "GET"
            return self._together_file(file)
        if path == "/v1/fine-tunes/models/limits":
            return {
                "model_name": query["model_name"][0], "default_gradient_accumulation_steps": 1,
                "max_learning_rate": 0.01, "min_learning_rate": 1e-7, "max_num_checkpoints": 10, "max_num_epochs": 20,
                "max_num_evals": 100, "max_seq_length_sft": 8192, "max_seq_length_dpo": 4096, "min_max_seq_length": 64,
                "merge_output_lora": True, "supports_full_training": True, "supports_reasoning": False,
                "supports_tools": True, "supports_vision": False,
                "lora_training": {"default_rank": 8, "max_rank": 64, "max_batch_size": 64, "max_batch_size_dpo": 32,
                                  "min_batch_size": 8, "target_modules": ["q_proj"]},
            }  # fmt: skip
        if path == "/v1/fine-tunes/estimate-price":
            asked = json.loads(body)
            if self.files[asked["training_file"]].polls < 2:
                return {"estimation_available": False, "unavailable_reason": "train_file_not_validated"}
            num_tokens = self.tokens_of(asked["training_file"]) * asked["n_epochs"]
            return {
                "estimation_available": True, "allowed_to_proceed": True, "user_limit": 100.0,
                "estimated_train_token_count": num_tokens, "estimated_eval_token_count": 0,
                "estimated_total_price": num_tokens * DOLLARS_PER_MILLION / 1e6,
            }  # fmt: skip
        if path == "/v1/fine-tunes" and method == "POST":
            asked = json.loads(body)
            job = self.order(f"ft-{len(self.jobs) + 1}", asked["suffix"], asked, asked["training_file"], headers)
            return self._together_job(job)
        if path == "/v1/fine-tunes":
            return {"data": [self._together_job(job) for job in self.listed()]}
        if match := re.fullmatch(r"/v1/fine-tunes/([^/]+)(/\w+)?", path):
            if match[1] not in self.jobs:
                return {"error": {"message": "no such job"}}, 404
            job = self.jobs[match[1]]
            if match[2] == "/events":
                return {"data": [_event(job, n) for n in range(job.place + 1)]}
            if match[2] == "/cancel":
                return self._together_job(self._cancel(job))
            return self._together_job(self.advance(job))
        if path == "/v1/finetune/download":
            return self.archive()
        return {"error": {"message": f"no such path {path}"}}, 404

    def _cancel(self, job: Job) -> Job:
        if not self.ended(job):
            job.said = CANCELLED[self.sdk]
        return job

    def _together_file(self, file: File) -> dict[str, Any]:
        status = "COMPLETED" if file.polls >= 2 else "PENDING"
        report = None
        if self.refuses_file:
            status, report = "INVALID_FORMAT", {"valid": False, "error": self.refuses_file}
        return {
            "id": file.id, "object": "file", "bytes": len(file.content), "created_at": 1, "filename": file.name,
            "FileType": "jsonl", "purpose": "fine-tune", "processing_status": status,
            **({"validation_report": report} if report else {}),
        }  # fmt: skip

    def _together_job(self, job: Job) -> dict[str, Any]:
        is_done, events = self.ended(job), []
        if job.said == FAILED["together"]:
            events = [{"object": "fine-tune-event", "created_at": "2026-11-28T10:00:00Z", "message": REASON,
                       "type": "job_error"}]  # fmt: skip
        price = round(job.num_tokens * DOLLARS_PER_MILLION * 1000) if is_done and not job.said else 0
        return {
            "id": job.id, "status": self.state(job), "user_id": "u", "created_at": "2026-11-28T10:00:00Z",
            "updated_at": "2026-11-28T10:00:01Z", "suffix": job.tag, "model": job.body["model"], "events": events,
            "model_output_name": f"acct/{job.body['model'].rpartition('/')[2]}-{job.tag}-1a2b",
            "adapter_output_name": None, "token_count": job.num_tokens if is_done else 0, "total_price": price,
            "training_file": job.body["training_file"], "n_epochs": job.body["n_epochs"],
        }  # fmt: skip

    # ---- OpenAI and Nebius

    def _openai(self, method: str, path: str, query: Any, body: bytes, headers: Any) -> Any:
        if path == "/v1/files" and method == "GET":
            return _page([self._openai_file(f) for f in self.files.values()])
        if path == "/v1/files":
            name, content = _multipart(body, headers["Content-Type"])
            file = self.files[f"file-{len(self.files) + 1}"] = File(f"file-{len(self.files) + 1}", name, content)
            return self._openai_file(file)
        if match := re.fullmatch(r"/v1/files/([^/]+)(/content)?", path):
            if match[1].startswith("result-"):
                name = match[1].removeprefix("result-")
                if match[2]:
                    return self.weights[name]
                return {**self._openai_file(File(match[1], f"final/{name}")), "bytes": len(self.weights[name])}
            return self._openai_file(self.files[match[1]])
        if path == "/v1/fine_tuning/jobs" and method == "POST":
            asked = json.loads(body)
            job = self.order(f"ftjob-{len(self.jobs) + 1}", asked["suffix"], asked, asked["training_file"], headers)
            return self._openai_job(job)
        if path == "/v1/fine_tuning/jobs":
            return _page([self._openai_job(job) for job in self.listed()])
        if match := re.fullmatch(r"/v1/fine_tuning/jobs/([^/]+)(/\w+)?", path):
            if match[1] not in self.jobs:
                return {"error": {"message": "no such job"}}, 404
            job = self.jobs[match[1]]
            if match[2] == "/events":
                return _page([{**_event(job, n), "object": "fine_tuning.job.event"} for n in range(job.place + 1)])
            if match[2] == "/cancel":
                return self._openai_job(self._cancel(job))
            if match[2] == "/checkpoints":
                results = [f"result-{name}" for name in self.weights] if self.vendor == "nebius" else []
                return _page([
                    {"id": f"ckpt-{step}", "created_at": step, "fine_tuning_job_id": job.id, "metrics": {},
                     "object": "fine_tuning.job.checkpoint", "step_number": step, "fine_tuned_model_checkpoint": "m",
                     **({"result_files": results if step == 20 else []} if results else {})}
                    for step in (10, 20)
                ])  # fmt: skip
            return self._openai_job(self.advance(job))
        return {"error": {"message": f"no such path {path}"}}, 404

    def _openai_file(self, file: File) -> dict[str, Any]:
        return {
            "id": file.id, "object": "file", "bytes": len(file.content), "created_at": 1, "filename": file.name,
            "purpose": "fine-tune", "status": "error" if self.refuses_file else "processed",
            **({"status_details": self.refuses_file} if self.refuses_file else {}),
        }  # fmt: skip

    def _openai_job(self, job: Job) -> dict[str, Any]:
        is_done, is_failed = self.ended(job) and not job.said, job.said == FAILED["openai"]
        error = {"code": "invalid_training_file", "message": REASON, "param": "training_file"} if is_failed else None
        extra = {"metadata": job.body.get("metadata")} if self.vendor == "openai" else {"suffix": job.tag}
        return {
            "id": job.id, "object": "fine_tuning.job", "created_at": 1, "error": error, "finished_at": None,
            "fine_tuned_model": f"ft:{job.body['model']}:org:{job.tag}:7p4lURel" if is_done else None,
            "hyperparameters": {"n_epochs": 2}, "model": job.body["model"], "organization_id": "org",
            "result_files": [], "seed": 0, "status": self.state(job), "training_file": job.body["training_file"],
            "trained_tokens": job.num_tokens if is_done else None, **extra,
        }  # fmt: skip

    # ---- Fireworks

    def _fireworks(self, method: str, path: str, query: Any, body: bytes, headers: Any) -> Any:
        if match := re.fullmatch(r"/signed/(.+)", path):
            return self.weights[match[1]]
        account, _, rest = path.removeprefix("/v1/accounts/").partition("/")
        if rest == "datasets":
            asked = json.loads(body)
            if asked["datasetId"] in self.files:
                return {"error": "exists"}, 409
            file = self.files[asked["datasetId"]] = File(asked["datasetId"], asked["datasetId"])
            return self._fireworks_dataset(account, file)
        if match := re.fullmatch(r"datasets/([^/:]+)(:upload)?", rest):
            if match[1] not in self.files:
                return {"error": "no such data set"}, 404
            file = self.files[match[1]]
            if match[2]:
                file.content, file.is_whole = _multipart(body, headers["Content-Type"])[1], True
            return self._fireworks_dataset(account, file)
        if rest == "supervisedFineTuningJobs" and method == "POST":
            asked, job_id = json.loads(body), query["supervisedFineTuningJobId"][0]
            if job_id in self.jobs:
                return {"error": "exists"}, 409
            job = self.order(job_id, job_id, asked, asked["dataset"].rpartition("/")[2], headers)
            return self._fireworks_job(account, job)
        if rest == "supervisedFineTuningJobs":
            return {"supervisedFineTuningJobs": [self._fireworks_job(account, job) for job in self.listed()]}
        if match := re.fullmatch(r"supervisedFineTuningJobs/([^/:]+)(:cancel)?", rest):
            if match[1] not in self.jobs:
                return {"error": "no such job"}, 404
            job = self.jobs[match[1]]
            return self._fireworks_job(account, self._cancel(job) if match[2] else self.advance(job))
        if re.fullmatch(r"models/[^/]+:getDownloadEndpoint", rest):
            return {"filenameToSignedUrls": {name: f"{self.root}/signed/{name}" for name in self.weights}}
        return {"error": f"no such path {path}"}, 404

    def _fireworks_dataset(self, account: str, file: File) -> dict[str, Any]:
        status = {"code": "INVALID_ARGUMENT", "message": self.refuses_file} if self.refuses_file else {"code": "OK"}
        return {
            "name": f"accounts/{account}/datasets/{file.id}", "state": "READY" if file.is_whole else "UPLOADING",
            "status": status, "exampleCount": "8",
        }  # fmt: skip

    def _fireworks_job(self, account: str, job: Job) -> dict[str, Any]:
        is_failed = job.said == FAILED["fireworks"]
        nanos = round(job.num_tokens * DOLLARS_PER_MILLION * 1000)
        return {
            "name": f"accounts/{account}/supervisedFineTuningJobs/{job.id}", "state": self.state(job),
            "dataset": job.body["dataset"], "outputModel": f"accounts/{account}/models/{job.body['outputModel']}",
            "status": {"code": "FAILED_PRECONDITION", "message": REASON} if is_failed else {"code": "OK"},
            "createTime": "2026-11-28T10:00:00Z",
            **({"estimatedCost": {"currencyCode": "USD", "units": "0", "nanos": nanos},
                "jobProgress": {"percent": 100, "inputTokens": job.num_tokens}} if self.ended(job) else {}),
        }  # fmt: skip


def _event(job: Job, number: int) -> dict[str, Any]:
    return {
        "id": f"ev-{number}", "created_at": f"2026-11-28T10:00:{number:02}Z", "level": "info",
        "message": f"step {number} of {job.id}", "object": "fine-tune-event", "type": "epoch_complete",
    }  # fmt: skip


def _page(data: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False}


def _multipart(body: bytes, content_type: str) -> tuple[str, bytes]:
    """Name and bytes of the one file of a form."""
    boundary = re.findall(r'boundary="?([^";]+)', content_type)[0].encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if match := re.search(rb'filename="([^"]+)"', head):
            return match[1].decode(), content.removesuffix(b"\r\n")
    return "", b""


def _chunks(file: Any) -> bytes:
    data = b""
    while size := int(file.readline(), 16):
        data += file.read(size)
        file.readline()
    file.readline()
    return data


def _hang_up(http: QuietHandler) -> None:
    http.close_connection = True
    http.connection.close()
