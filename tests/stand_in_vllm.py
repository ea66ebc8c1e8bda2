"""Speaks what vLLM 0.32.0 speaks, as recorded from it, with a rule in place of a model.

Started like vLLM (`... MODEL --port N --served-model-name base ...`) with VLLM_API_KEY. A model answers with its own
number: the base with 100 + position, the n-th adapter loaded with 100 * (n + 1) + position. STAND_IN_FAULT=last_slot
does what 0.32 does on a CPU: the base is answered with the adapter loaded last while a request for any is under way;
last_slot:2 does so once two were loaded.
STAND_IN_FAULT=dies ends the process at the first completion.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

STOP, MAX_LEN = 5, 64
FAULT, _, FROM = os.environ.get("STAND_IN_FAULT", "").partition(":")
loaded: dict[str, int] = {}
running: list[str] = []


def refusal(status: int, message: str) -> Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def is_known(request: Request) -> bool:
    return request.headers.get("authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"


async def health(request: Request) -> Response:
    return Response()


async def models(request: Request) -> Response:
    if not is_known(request):
        return refusal(401, "Unauthorized")
    listed = [{"id": "base", "parent": None, "max_model_len": MAX_LEN}]
    return JSONResponse({"data": [*listed, *({"id": name, "parent": "base"} for name in loaded)]})


async def load(request: Request) -> Response:
    if not is_known(request):
        return refusal(401, "Unauthorized")
    body = await request.json()
    if body["lora_name"] in loaded:
        return refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
    if not os.path.isfile(os.path.join(body["lora_path"], "adapter_model.safetensors")):
        return refusal(404, f"No adapter found for {body['lora_path']}")
    loaded[body["lora_name"]] = len(loaded) + 1
    return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")


async def unload(request: Request) -> Response:
    del loaded[(await request.json())["lora_name"]]
    return PlainTextResponse("Success")


async def completions(request: Request) -> Response:
    if not is_known(request):
        return refusal(401, "Unauthorized")
    if FAULT == "dies":
        print("EngineCore died: out of memory", flush=True)
        os._exit(1)
    body = await request.json()
    model, prompt = body["model"], body["prompt"]
    if model != "base" and model not in loaded:
        return refusal(404, f"The model `{model}` does not exist. Valid aliases: base.")
    if len(prompt) >= MAX_LEN:
        return refusal(400, f"This model's maximum context length is {MAX_LEN} tokens.")
    return StreamingResponse(answer(body, model), media_type="text/event-stream")


async def answer(body, model):
    running.append(model)
    try:
        for at in range(body["max_tokens"]):
            await asyncio.sleep(0.002)
            number = loaded.get(model, 0)
            if (
                FAULT == "last_slot"
                and len(loaded) >= int(FROM or 1)
                and model == "base"
                and any(other != "base" for other in running)
            ):
                number = len(loaded)
            token = 100 * (number + 1) + at
            ends = body["prompt"][-1] == at and str(STOP) not in body.get("logit_bias", {})
            token = STOP if ends else token
            choice = {"index": 0, "text": "x", "logprobs": None, "finish_reason": None, "stop_reason": None}
            choice["token_ids"] = [token]
            if body.get("logprobs") is not None:
                names = {f"token_id:{token}": -0.1, "token_id:7": -3.0}
                choice["logprobs"] = {
                    "token_logprobs": [-0.1],
                    "tokens": [f"token_id:{token}"],
                    "top_logprobs": [names],
                }
            if ends:
                choice |= {"finish_reason": "stop", "stop_reason": STOP}
            elif at + 1 == body["max_tokens"]:
                choice["finish_reason"] = "length"
            yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            if ends:
                break
        details = {"prompt_tokens_details": {"cached_tokens": 3}}
        yield f"data: {json.dumps({'choices': [], 'usage': details})}\n\ndata: [DONE]\n\n"
    finally:
        running.remove(model)


if __name__ == "__main__":
    print(json.dumps(sys.argv[1:]), flush=True)
    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/load_lora_adapter", load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
    ]
    port = int(sys.argv[sys.argv.index("--port") + 1])
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")
