"""LangChain's ChatOpenAI and curl against a real `shoestring serve`, for clients that no test has.

`python scripts/check_langchain.py --install FOLDER` makes an environment with langchain-openai (200 MB). Then
`python scripts/check_langchain.py --python FOLDER/bin/python [RUN...]` serves the runs (default: the smallest embedded
model), asks by LangChain for a chat, a stream, tools and structured output and by curl for a chat and a stream, and
prints one JSON object. Exit status 1 where one fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "scripts" / "langchain-requirements.txt"
HI = "Where is my parcel?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=["shoestring-1m"])
    parser.add_argument("--install", type=Path, metavar="FOLDER")
    parser.add_argument("--python", type=Path, help="of the environment with LangChain")
    parser.add_argument("--inside", nargs=3, metavar=("URL", "KEY_FILE", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(by_langchain(*given.inside)))
        return 0
    if given.install:
        subprocess.run([sys.executable, "-m", "venv", str(given.install)], check=True)
        pip = [str(given.install / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        return subprocess.run([*pip, "-r", str(REQUIREMENTS)]).returncode
    with tempfile.TemporaryDirectory() as state:
        told = serve_and_ask(given.targets, given.python, Path(state))
    print(json.dumps(told, indent=2))
    return int(not all(told["ok"].values()))


def serve_and_ask(targets: list[str], python: Path, state: Path) -> dict:
    """Start the server, ask it, end it."""
    command = [sys.executable, "-m", "shoestring", "serve", *targets, "--json", "--api-key-file", str(state / "key")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    environment.pop("SHOESTRING_API_KEY", None)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        served = json.loads(child.stdout.read())
        url, key_file, model = served["base_url"], served["api_key_file"], served["models"][-1]
        inside = [str(python), __file__, "--inside", url, key_file, model]
        done = subprocess.run(inside, capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stderr)
        by = json.loads(done.stdout) if done.returncode == 0 else {"langchain": None}
        ok = {f"langchain {name}": bool(value) for name, value in by.items() if name != "versions"}
        ok |= by_curl(url, key_file, model)
        return {"model": model, "engine": served["engine"], "versions": by.get("versions"), "ok": ok}
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def by_curl(url: str, key_file: str, model: str) -> dict[str, bool]:
    """A chat and a stream as a shell asks them."""
    key = Path(key_file).read_text().strip()

    def curl(**more: object) -> str:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": HI}], "max_tokens": 8, **more})
        command = ["curl", "-sS", "-N", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", body]
        # The key by a file of headers: a command line can be read by others.
        with tempfile.NamedTemporaryFile("w", suffix=".headers") as headers:
            headers.write(f"Authorization: Bearer {key}\n")
            headers.flush()
            return subprocess.run([*command, "-H", f"@{headers.name}"], capture_output=True, text=True).stdout

    text = json.loads(curl())["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in curl(stream=True).splitlines() if line]
    streamed = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    return {"curl chat": isinstance(text, str), "curl stream": events[-1] == "[DONE]" and streamed == text}


def by_langchain(url: str, key_file: str, model: str) -> dict:
    """Run in LangChain's environment."""
    from importlib.metadata import version
    from typing import Literal

    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Sorted(BaseModel):
        """Where a message belongs."""

        team: Literal["billing", "shipping"]
        urgency: Literal["low", "high"]

    @tool
    def route(team: Literal["billing", "shipping"]) -> str:
        """Send it to a team."""
        return f"sent to {team}"

    key = Path(key_file).read_text().strip()
    chat = ChatOpenAI(model=model, base_url=url, api_key=key, max_tokens=200, temperature=0, max_retries=0)
    messages = [SystemMessage("Be brief."), HumanMessage(HI)]
    told: dict = {"versions": {name: version(name) for name in ("langchain-core", "langchain-openai", "openai")}}
    answer = chat.invoke(messages)
    told["chat"] = isinstance(answer.content, str) and answer.usage_metadata["output_tokens"] > 0
    told["stream"] = "".join(str(chunk.content) for chunk in chat.stream(messages)) == answer.content
    told["batch"] = [str(each.content) for each in chat.batch([messages] * 3)] == [answer.content] * 3
    called = chat.bind_tools([route], tool_choice="route").invoke(messages)
    told["tools"] = called.tool_calls[0]["name"] == "route" and called.tool_calls[0]["args"]["team"] in (
        "billing",
        "shipping",
    )
    call = called.tool_calls[0]
    result = ToolMessage(route.invoke(call["args"]), tool_call_id=call["id"])
    after = chat.bind_tools([route]).invoke([*messages, called, result])
    told["tool result"] = isinstance(after, AIMessage)
    streamed = None
    for chunk in chat.bind_tools([route], tool_choice="any").stream(messages):
        streamed = chunk if streamed is None else streamed + chunk
    told["tools streamed"] = streamed.tool_calls[0]["name"] == "route"
    for method in ("json_schema", "function_calling"):
        found = chat.with_structured_output(Sorted, method=method).invoke(messages)
        told[f"structured output, {method}"] = isinstance(found, Sorted)
    loose = chat.bind(response_format={"type": "json_object"}, max_tokens=200).invoke(messages)
    told["json_object"] = str(loose.content).lstrip().startswith("{")
    logprobs = chat.bind(logprobs=True, top_logprobs=2).invoke(messages)
    told["logprobs"] = len(logprobs.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2
    return told


if __name__ == "__main__":
    sys.exit(main())
