"""Tools: declarations and calls from the file to the template, the outputs, and the endpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shoestring.config import EndpointConfig, FieldsConfig, RunConfig
from shoestring.data.clean import RowLimit
from shoestring.data.curate import curate
from shoestring.data.folder import curate as curate_files
from shoestring.data.formats import convert, shape_of
from shoestring.data.load import load
from shoestring.data.safety import redacted, safety_faults
from shoestring.decide.answers import AnswerFile
from shoestring.decide.baselines import few_shot_prompts, zero_shot_prompts
from shoestring.decide.client import Client
from shoestring.errors import EndpointError
from shoestring.evaluate.generation import LocalGenerator
from shoestring.messages import (
    Example,
    Message,
    ToolCall,
    example_from_json,
    example_to_json,
    read_answer,
    split_tools,
    turns_of,
)
from shoestring.records import Device
from shoestring.train import tokens, tools
from shoestring.train.base import load_base
from tests.chat_templates import TEMPLATES
from tests.scripted_server import ScriptedServer
from tests.tiny import TEMPLATE, make_model, make_tokenizer

FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a thing.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}, "most": {"type": "integer"}}},
    },
}
LOSE = {"type": "function", "function": {"name": "lose", "description": "Lose a thing."}}


def call(what: str, number: int = 1) -> dict[str, Any]:
    arguments = json.dumps({"what": what, "most": 2})
    return {"id": f"abc-{number}", "type": "function", "function": {"name": "find", "arguments": arguments}}


def row(*calls: dict[str, Any], content: str | None = None, declared: Any = (FIND,), asked: str = "look") -> Any:
    """A request, its calls with a result each, and what is said of it."""
    results = [{"role": "tool", "tool_call_id": c["id"], "content": f"{n} kelp"} for n, c in enumerate(calls, 4)]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}]
    turns += [{"role": "assistant", "content": content, "tool_calls": list(calls)}, *results]
    return {"messages": [*turns, {"role": "assistant", "content": "four"}], "tools": list(declared)}


def examples(source: Any) -> list[Example]:
    shape = shape_of(source, FieldsConfig())
    assert shape is not None
    return convert(source, shape, "").examples("t.jsonl", 3)


def tokenizer_of(name: str) -> Any:
    template, specials = TEMPLATES[name]
    return make_tokenizer(template, specials, eos_token=specials[0], pad_token=specials[2], bos_token=specials[1])  # type: ignore[arg-type]


def learned(tokenizer: Any, example: Example) -> str:
    """The text that bears loss, after a check that it follows what generation is given."""
    encoded = tokens.encode_example(tokenizer, example)
    assert encoded.ids[: encoded.num_prompt_tokens] == tokens.encode_prompt(tokenizer, example.request)
    assert encoded.ids[-1] == tokens.end_token_id(tokenizer)
    return str(tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]))


# ---- rows ------------------------------------------------------------------------------------


def test_a_row_with_tools_by_hand() -> None:
    first, second = examples(row(call("kelp")))
    assert json.loads(first.tools) == [FIND]
    assert first.completion == '{"name": "find", "arguments": {"most": 2, "what": "kelp"}}'
    assert second.prompt[2].tool_calls == (ToolCall("find", '{"what": "kelp", "most": 2}', "abc-1"),)
    assert second.prompt[3] == Message("tool", "4 kelp", tool_call_id="abc-1") and second.completion == "four"
    assert first.request == (Message("tools", first.tools), *first.prompt)
    for example in (first, second):
        assert example_from_json(json.loads(json.dumps(example_to_json(example)))) == example


def test_sharegpt_calls_and_bare_declarations_are_read_alike() -> None:
    turns = [
        {"from": "human", "value": "look"},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"what": "kelp", "most": 2}}'},
        {"from": "observation", "value": "4 kelp"},
        {"from": "gpt", "value": "four"},
    ]
    first, second = examples({"conversations": turns, "tools": json.dumps([FIND["function"]])})
    theirs = examples({**row(call("kelp")), "messages": row(call("kelp"))["messages"][1:]})
    assert [first.id, second.id] == [e.id for e in theirs]  # ids of calls tell no rows apart


def test_a_row_file_can_be_read_again(tmp_path: Path) -> None:
    made = examples(row(call("kelp"), call("jade", 2), content="Let me look."))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(example_to_json(e)) + "\n" for e in made[:1]))
    (again,) = load(["train.jsonl"], FieldsConfig(), "", tmp_path).examples
    assert (again.messages, again.tools, again.id) == (made[0].messages, made[0].tools, made[0].id)


def curated(folder: Path, rows: list[Any], limits: Any = (), **settings: Any) -> Any:
    ordinary = [{"messages": talk(i)} for i in range(60)]
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rows, *ordinary]))
    raw = {"name": "t", "task": {"kind": "chat", "bar": 0}, "data": {"train": "t.jsonl"}, **settings}
    return curate(RunConfig.model_validate(raw), folder, limits=limits)


def talk(number: int) -> list[dict[str, str]]:
    word = "".join(chr(97 + (number * k) % 26) for k in (1, 3, 5, 7, 11))
    return [{"role": "user", "content": f"{word} {number}"}, {"role": "assistant", "content": f"said {word[::-1]}"}]


@pytest.mark.parametrize(
    ("other", "num_dropped"),
    [
        ({}, 1),
        ({"declared": (dict(reversed(FIND.items())),)}, 1),  # another order of keys declares the same
        ({"declared": (FIND, LOSE)}, 0),
        ({"declared": ()}, 0),
    ],
)
@pytest.mark.parametrize("asked", ["look for kelp", "Look for the kelp, please!"])
def test_rows_with_other_tools_are_no_repeats_and_contradict_nothing(
    tmp_path: Path, asked: str, other: dict[str, Any], num_dropped: int
) -> None:
    one = {**row(declared=(FIND,), asked="look for kelp")}
    two = {**row(asked=asked, **{"declared": (FIND,), **other})}
    for source in (one, two):  # an answer of one turn, without calls
        source["messages"] = [source["messages"][1], {"role": "assistant", "content": "four"}]
    result = curated(tmp_path, [one, two])
    codes = [d.code for d in result.dropped]
    assert len(codes) == num_dropped and set(codes) <= {"exact_duplicate", "near_duplicate"}
    kept = [e for part in (result.train, result.dev, result.eval) for e in part if e.line < 3]
    assert next(json.loads(e.tools) for e in kept if e.line == 1) == [FIND]


def test_secrets_in_declarations_and_arguments_are_found_and_redacted(tmp_path: Path) -> None:
    mail = {"type": "function", "function": {"name": "mail", "description": "Mails ada.lovelace@gmail.com\nat night."}}
    asked = {"id": "1", "type": "function", "function": {"name": "mail", "arguments": '{"password": "tR4v-9xQ2mm"}'}}
    (first, _) = examples(row(asked, declared=[mail]))
    faults = {f.code: f.evidence for f in safety_faults(first)}
    assert faults["personal_email"].endswith("(tools)") and faults["secret_password"].endswith("(assistant's call)")
    clean = redacted(first)
    assert "<EMAIL>" in clean.tools and json.loads(clean.tools)[0]["function"]["description"].endswith("\nat night.")
    assert clean.messages[-1].tool_calls[0].values == {"password": "<PASSWORD>"} and clean.id != first.id
    assert not [f for f in safety_faults(clean) if f.code.startswith(("secret", "personal"))]


# ---- templates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3", '<tool_call>\n{"name": "find", "arguments": {"what": "kelp", "most": 2}}\n</tool_call><|im_end|>'),
        ("llama3.1", '{"name": "find", "parameters": {"what": "kelp", "most": 2}}<|eot_id|>'),
        ("hermes", '<tool_call>\n{"arguments": {"what": "kelp", "most": 2}, "name": "find"}\n</tool_call><|im_end|>'),
    ],
)
def test_a_call_bears_loss_as_the_template_writes_it(name: str, expected: str) -> None:
    tokenizer = tokenizer_of(name)
    assert tools.tool_form(tokenizer) == tools.ToolForm(True, True)
    first, second = examples(row(call("kelp")))
    assert learned(tokenizer, first) == expected
    assert learned(tokenizer, second) == "four" + expected[expected.rindex("<|") :]
    prompt = tokenizer.decode(tokens.encode_prompt(tokenizer, second.request))
    assert "Find a thing." in prompt and "4 kelp" in prompt and '"what": "kelp"' in prompt
    # What a model so trained writes is compared as the row says it.
    assert read_answer(expected[: expected.rindex("<|")], first.tools).text == first.completion


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_without_tools_is_rendered_without_them(name: str) -> None:
    tokenizer = tokenizer_of(name)
    plain = Example((Message("user", "hi"), Message("assistant", "yo")), (1, 2))
    assert learned(tokenizer, plain).startswith("yo<|")
    assert "tool" not in tokenizer.decode(tokens.encode_prompt(tokenizer, plain.request)).lower()


@pytest.mark.parametrize("name", ["qwen3", "hermes"])
def test_parallel_calls_are_learned_together(name: str) -> None:
    first, second = examples(row(call("kelp"), call("jade", 2)))
    text = learned(tokenizer_of(name), first)
    assert text.count("<tool_call>") == text.count("</tool_call>") == 2 and text.index("kelp") < text.index("jade")
    assert read_answer(text.removesuffix("<|im_end|>"), first.tools).text == first.completion
    assert json.loads(first.completion)[1]["arguments"]["what"] == "jade"
    assert learned(tokenizer_of(name), second) == "four<|im_end|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_without_a_declaration_are_learned_too(name: str) -> None:
    first = examples(row(call("kelp"), declared=()))[0]
    assert '{"what": "kelp", "most": 2}' in learned(tokenizer_of(name), first)


def test_text_beside_a_call_is_learned_too_or_the_row_refused() -> None:
    first = examples(row(call("kelp"), content="Let me look."))[0]
    assert learned(tokenizer_of("qwen3"), first).startswith('Let me look.\n<tool_call>\n{"name"')
    with pytest.raises(tools.TemplateRefused, match=r"t.jsonl:3: .* leaves out 'Let me look.' beside the tool calls"):
        tokens.encode_example(tokenizer_of("llama3.1"), first)


def test_an_end_token_inside_an_argument_is_not_the_end() -> None:
    first = examples(row(call("a<|im_end|>b")))[0]
    assert learned(tokenizer_of("qwen3"), first).endswith('"most": 2}}\n</tool_call><|im_end|>')


@pytest.mark.parametrize(("after_call", "learned_end"), [("<|call|>", "<|call|>"), ("", "<|im_end|>")])
def test_calls_that_end_otherwise_than_text_end_as_the_template_says(after_call: str, learned_end: str) -> None:
    """As gpt-oss and Gemma 4 (a token of their own) and GLM (none) do."""
    template = TEMPLATES["qwen3"][0].replace(  # type: ignore[union-attr]
        "{%- endfor %}\n{{- '<|im_end|>\\n' }}",
        f"{{%- endfor %}}\n{{{{- '{after_call}' if message.tool_calls else '<|im_end|>\\n' }}}}",
    )
    tokenizer = make_tokenizer(
        template,
        ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|call|>"],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    first, second = examples(row(call("kelp")))
    encoded = [tokens.encode_example(tokenizer, e).ids for e in (first, second)]
    assert tokenizer.decode(encoded[0]).endswith(f"2}}}}\n</tool_call>{learned_end}")
    assert tokenizer.decode(encoded[1]).endswith("four<|im_end|>")
    assert set(tokens.stop_token_ids(tokenizer)) == {ids[-1] for ids in encoded}


def test_a_template_without_a_place_for_tools_gets_them_in_the_system_message() -> None:
    tokenizer = make_tokenizer(TEMPLATE)
    assert tools.tool_form(tokenizer) == tools.ToolForm(False, False)
    first, second = examples(row(call("kelp"), call("jade", 2)))
    block = '<tool_call>\n{{"name": "find", "arguments": {{"what": "{}", "most": 2}}}}\n</tool_call>'
    assert learned(tokenizer, first) == f"{block.format('kelp')}\n{block.format('jade')}<|end|>"
    prompt = tokenizer.decode(tokens.encode_prompt(tokenizer, second.request))
    system, _, rest = prompt.partition("<|end|>\n")
    assert system == f"<|bos|><|system|>\nBe brief.\n\n{tools.declaration_text([FIND])}"
    response = "<tool_response>\n{} kelp\n</tool_response>"
    assert rest.endswith(f"<|user|>\n{response.format(4)}\n{response.format(5)}<|end|>\n<|assistant|>\n")


def test_a_refused_conversation_is_a_dropped_row_and_the_run_goes_on(tmp_path: Path) -> None:
    limits = [RowLimit(name, partial(tokens.lengths_or_refusals, tokenizer_of(name)), 4096, 4096) for name in TEMPLATES]
    parallel, single = row(call("kelp"), call("jade", 2)), row(call("lotus"), asked="seek")
    result = curated(tmp_path, [parallel, single], limits)
    dropped = [(d.code, d.line, d.evidence) for d in result.dropped]
    why = "llama3.1: the chat template refuses roles ['system', 'user', 'assistant'"
    assert [(code, line) for code, line, _ in dropped] == [("template_refuses", 1)] * 2
    assert all(e.startswith(why) and "only supports single tool-calls at once!" in e for _, _, e in dropped)
    kept = [e for part in (result.train, result.dev, result.eval) for e in part]
    assert sum(e.line == 2 for e in kept) == 2 and len(kept) == 62


def test_a_template_that_hides_tools_is_reported_once_with_a_line(tmp_path: Path) -> None:
    limits = [RowLimit("plain", lambda rows: [(5, 5)] * len(rows), 99, 99, shows_tools=False)]
    result = curated(tmp_path, [{"messages": talk(99)}, row(call("kelp")), row(call("lotus"), asked="seek")], limits)
    (fault,) = [f for f in result.faults if f.code == "tools_not_in_template"]
    assert (fault.line, fault.repair) == (2, "safe") and "plain" in fault.evidence and "4 rows" in fault.evidence
    assert not [f for f in curated(tmp_path, [], limits).faults if f.code == "tools_not_in_template"]


def test_ids_are_numbered_so_that_every_template_takes_them() -> None:
    second = examples(row(call("kelp", 7), call("jade", 8)))[1]
    turns = turns_of(second.prompt, as_text=True)
    assert [c["id"] for c in turns[2]["tool_calls"]] == ["call00001", "call00002"]
    assert [t.get("tool_call_id") for t in turns[3:]] == ["call00001", "call00002"]
    nameless = [replace(m, tool_call_id="") for m in second.prompt]
    assert turns_of(nameless, as_text=True) == turns


# ---- outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ('{"name": "find", "parameters": {"what": "kelp", "most": 2}}', "", 1),
        ('Here: [TOOL_CALLS] [{"name": "find", "arguments": {"most": 2, "what": "kelp"}}]', "Here:", 1),
        ("<tool_call>\n<function=find>\n<parameter=what>\nkelp\n</parameter>\n<parameter=most>\n2\n</parameter>\n"
         "</function>\n</tool_call>", "", 1),
        ('{"name": "Ada", "age": 3}', '{"name": "Ada", "age": 3}', 0),
        ('<tool_call>\n{"name": "find", "argum', '<tool_call>\n{"name": "find", "argum', 0),
        ("no call at all", "no call at all", 0),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_forms_models_write(text: str, content: str, num_calls: int) -> None:
    found = read_answer(text, json.dumps([FIND]))
    assert (found.content, len(found.tool_calls)) == (content, num_calls)
    if num_calls:
        assert found.tool_calls[0].values == {"what": "kelp", "most": 2}
    assert read_answer(text, "").text == text  # without declarations text is text


def test_a_model_that_learned_a_call_makes_it_and_it_is_scored_as_right(tmp_path: Path) -> None:
    """Trained on one row until it knows it: what training showed is what generation asks, and the call is read back."""
    import torch

    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE[: TEMPLATE.index("<|end|>")] + "{% for c in "
        "m.tool_calls or [] %}<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
        "</tool_call>{% endfor %}" + TEMPLATE[TEMPLATE.index("<|end|>") :]
    )
    folder = str(make_model(tmp_path / "model", template=template))
    asked = {"role": "user", "content": "look"}
    answer = {"role": "assistant", "content": None, "tool_calls": [call("kelp")]}
    (example,) = examples({"messages": [asked, answer], "tools": [{"function": {"name": "find"}}]})
    tokenizer = tokens.load_tokenizer(folder)
    model = load_base(folder, device=Device("cpu", "cpu", 2**30, 1, "float32", ""), quantise=False)
    encoded = tokens.encode_example(tokenizer, example)
    ids = torch.tensor([encoded.ids])
    labels = ids.clone()
    labels[0, : encoded.num_prompt_tokens] = -100
    optimizer = torch.optim.AdamW(model.requires_grad_(True).parameters(), lr=1e-2)
    for _ in range(60):
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (completion,) = LocalGenerator(model, tokenizer, max_new_tokens=90).generate([example.request])
    assert completion.text == example.completion and completion.stopped


def test_shots_carry_their_calls_and_their_tools() -> None:
    (asked,) = examples({"messages": talk(1), "tools": [LOSE]})
    shot = examples(row(call("kelp")))[0]
    prompts, num_shots = few_shot_prompts([asked], [shot], "Be good.", 1, len, 99, 9, seed=0)
    declared, turns = split_tools(prompts[0])
    assert num_shots == 1 and json.loads(declared) == [LOSE, FIND]
    assert [t["role"] for t in turns_of(turns, as_text=True)] == ["system", "user", "assistant", "tool", "user"]
    assert turns[2].tool_calls == shot.answer[0].tool_calls and turns[3].tool_call_id == "abc-1"
    assert split_tools(zero_shot_prompts([asked], "Be good.")[0])[0] == asked.tools


def endpoint(server: ScriptedServer, folder: Path) -> Client:
    settings = EndpointConfig(
        name="big", base_url=server.url, model="m", api_key_env="", usd_per_million_input_tokens=0,
        usd_per_million_output_tokens=0,
    )  # fmt: skip
    return Client(settings, AnswerFile(folder / "answers.jsonl"), max_new_tokens=8, backoff_s=0.01)


def test_an_endpoint_is_sent_tools_and_its_calls_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    replies = [{"content": None, "tool_calls": [call("kelp")]}, {"content": "four"}, {"tool_calls": [{"id": "1"}]}]

    def script(number: int, body: dict[str, Any]) -> Any:
        return (
            200,
            {},
            json.dumps({"choices": [{"message": replies[min(number, 2)]}]}).encode(),
        )

    server = ScriptedServer(script)
    first, second = examples(row(call("kelp")))
    client = endpoint(server, tmp_path)
    assert client.generate([first.request])[0].text == first.completion
    assert client.generate([second.request])[0].text == "four"
    assert server.requests[0]["tools"] == [FIND]
    assert [m["role"] for m in server.requests[0]["messages"]] == ["system", "user"]
    sent = server.requests[1]["messages"]
    assert (
        sent[2]["content"] is None and json.loads(sent[2]["tool_calls"][0]["function"]["arguments"])["what"] == "kelp"
    )
    assert sent[3] == {"role": "tool", "content": "4 kelp", "tool_call_id": sent[2]["tool_calls"][0]["id"]}
    assert client.has(first.request) and not client.has(first.prompt)  # other tools, another question
    with pytest.raises(EndpointError, match="a tool call of the answer names no function"):
        client.generate([first.prompt])
    server.close()


def test_curation_writes_tools_into_its_files(tmp_path: Path) -> None:
    rows = [row(call(f"kelp{i}"), asked=f"look {i}") for i in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    curate_files([str(tmp_path / "t.jsonl")], tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert all(line["tools"] == [FIND] for line in lines)
    assert lines[0]["messages"][-1]["tool_calls"][0]["function"]["name"] == "find"
