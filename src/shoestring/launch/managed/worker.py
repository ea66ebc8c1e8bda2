"""The process that has the vendor's SDK: one JSON request a line comes in, JSON replies go out.

Runs by itself (`python -I worker.py VENDOR`) in an environment of the SDK's own; nothing of Shoestring is imported.
The SDK's own retries are off: whether a call is made again is decided where what it may cost is known.
Requests: {"id", "op", "args"}. Replies: {"id", "result"}, {"id", "error": {"kind", "status", "message",
"retry_after_s"}}, and before them any number of {"id", "progress": [done, total]}.
"""

import contextlib
import email.utils
import hashlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20
TELL_EVERY_S = 0.5
PARTIAL, ETAG = ".partial", ".etag"


class Nonsense(Exception):
    """What came back is not of the documented shape."""


class Tools:
    """What every vendor's calls share: answers as plain JSON, and downloads that go on where they stopped."""

    def __init__(self, tell):
        self.tell = tell  # tell(done, total)

    def plain(self, answer):
        """A response of the SDK by the API's own names. Raises: Nonsense."""
        if isinstance(answer, dict):
            return answer
        if not hasattr(answer, "to_dict"):
            raise Nonsense(f"the answer is no JSON object: {str(answer)[:200]!r}")
        return answer.to_dict(mode="json")

    def fetch(self, path, opened):
        """Stream into path; what an earlier try left is continued where the server agrees.

        opened(headers) is a context manager that gives a response with status_code, headers and iter_bytes(size).
        Returns bytes and SHA-256. Raises: Nonsense for an empty file or a false checksum, ConnectionError for less
        than was announced.
        """
        path = Path(path)
        partial, etag_file = path.with_name(path.name + PARTIAL), path.with_name(path.name + ETAG)
        path.parent.mkdir(parents=True, exist_ok=True)
        have = partial.stat().st_size if partial.is_file() and etag_file.is_file() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if etag := etag_file.read_text(encoding="utf-8"):
                headers["If-Range"] = etag
        with opened(headers) as response:
            if response.status_code == 206 and _range_start(response.headers) == have:
                total = _range_total(response.headers)
            else:  # the whole file, from its beginning
                have, length = 0, response.headers.get("content-length")
                total = int(length) if length else None
            etag_file.write_text(response.headers.get("etag", ""), encoding="utf-8")
            announced = _announced_md5(response.headers)
            told_s = 0.0
            with open(partial, "r+b" if have else "wb") as file:
                file.seek(have)
                for block in response.iter_bytes(BLOCK_BYTES):
                    file.write(block)
                    have += len(block)
                    if time.monotonic() - told_s > TELL_EVERY_S:
                        told_s = time.monotonic()
                        self.tell(have, total)
                file.flush()
                os.fsync(file.fileno())
        if total is not None and have < total:
            raise ConnectionError(f"the download ended at {have} of {total} bytes")
        digests = _digests(partial)
        is_false = announced and announced != digests["md5"]
        if is_false or have == 0 or (total is not None and have > total):
            partial.unlink()
            why = (
                f"is not what its checksum says ({digests['md5']}, announced {announced})" if is_false else "is no file"
            )
            raise Nonsense(f"what was downloaded as {path.name} ({have} bytes) {why}; it will be fetched anew")
        os.replace(partial, path)
        etag_file.unlink()
        self.tell(have, have)
        return {"name": path.name, "bytes": have, "sha256": digests["sha256"]}

    def unpack(self, archive, folder):
        """A .tar.gz or .tar.zst (told by its first bytes) into folder; the paths of its files."""
        import tarfile

        archive, folder = Path(archive), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(archive, "rb"))
            start = file.read(4)
            file.seek(0)
            if start == b"\x28\xb5\x2f\xfd":
                file = stack.enter_context(_zstd(file))
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r|*"))
            names = []
            for member in tar:
                member = tarfile.data_filter(member, str(folder))  # nothing outside of folder, no links to there
                if member.isfile():
                    tar.extract(member, str(folder), filter="data")
                    names.append(member.name)
        return names


def _zstd(file):
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(file)
    return zstd.ZstdFile(file)


def _range_start(headers):
    with contextlib.suppress(ValueError, IndexError):
        return int(headers["content-range"].split(" ", 1)[1].split("-")[0])
    return -1


def _range_total(headers):
    total = headers["content-range"].rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _announced_md5(headers):
    """MD5 that the storage states for the whole file, hexadecimal; empty where it states none."""
    import base64

    for part in headers.get("x-goog-hash", "").split(","):
        name, _, value = part.strip().partition("=")
        if name == "md5":
            return base64.b64decode(value).hex()
    return ""


def _digests(path):
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
    return {"sha256": sha256.hexdigest(), "md5": md5.hexdigest()}


def error_of(error, sdk, secrets):
    """An exception as the other side reads it, without the key."""
    message = " ".join(str(error).split())[:600] or type(error).__name__
    for secret in secrets:
        message = message.replace(secret, "***")
    told = {"kind": "sdk", "status": None, "message": message, "retry_after_s": None}
    names = {kind.__name__ for kind in type(error).__mro__}
    if sdk is not None and isinstance(error, sdk.APIStatusError):
        told |= {"kind": "status", "status": error.response.status_code}
        told["retry_after_s"] = _seconds(error.response.headers.get("retry-after"))
    elif isinstance(error, Nonsense) or "APIResponseValidationError" in names:
        told["kind"] = "nonsense"
    elif isinstance(error, (AttributeError, KeyError, json.JSONDecodeError)):  # how an SDK stumbles over a web page
        told |= {"kind": "nonsense", "message": f"the answer is not of the documented shape ({message})"}
    elif names & {"APITimeoutError", "TimeoutException", "TimeoutError"}:
        told["kind"] = "timeout"
    elif names & {"APIConnectionError", "RequestError", "StreamError", "ConnectionError"}:
        cause = error.__cause__
        told |= {"kind": "connection", "message": f"{message} ({cause})" if cause else message}
    elif isinstance(error, ImportError):
        told["kind"] = "missing"
    return told


def _seconds(retry_after):
    if not retry_after:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    return None


def serve(vendor, requests, reply):
    """Answer requests until they end."""
    calls: Any = None
    for line in requests:
        request = json.loads(line)
        number, op, args = request["id"], request["op"], request["args"]
        secrets = [calls.api_key] if calls else []
        try:
            if op == "open":
                secrets = [args["api_key"]]
                with open(args.pop("log_file"), "ab") as log:
                    os.dup2(log.fileno(), 2)
                tools = Tools(lambda done, total, n=number: reply({"id": n, "progress": [done, total]}))
                calls = importlib.import_module(f"with_{vendor}").Calls(tools, **args)
                calls.api_key = args["api_key"]
                result = {"version": calls.sdk.__version__, "python": sys.version.split()[0]}
            else:
                calls.tools.tell = lambda done, total, n=number: reply({"id": n, "progress": [done, total]})
                result = getattr(calls, op)(**args)  # calls: "open" comes first
            reply({"id": number, "result": result})
        except Exception as error:  # each SDK has its own; all are handed to the other side
            reply({"id": number, "error": error_of(error, calls.sdk if calls else None, secrets)})


def main():
    """Requests from standard input, replies to what was standard output; what the SDK prints goes to the log."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    serve(sys.argv[1], sys.stdin, reply)


if __name__ == "__main__":
    main()
