"""train/base.py: where a model is found, how text becomes tokens, how weights are held."""

import pytest

from shoestring.config import RunConfig
from shoestring.errors import ConfigError, ModelError
from shoestring.records import Example, Message
from shoestring.train import base, device, locate, tokens
from tests.tiny import TEMPLATE, make_model, make_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny"))


def example(*turns: tuple[str, str]) -> Example:
    messages = tuple(Message(role, content) for role, content in turns)
    return Example(messages, (len(messages) - 1, len(messages)), source="t.jsonl", line=1)


def loaded(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return base.load_tokenizer(str(tmp_path))


ROW = example(("user", "hi"), ("assistant", "yo"))


def test_ids_of_a_row_by_hand(tiny):
    tokenizer = base.load_tokenizer(tiny)
    encoded = base.encode_example(tokenizer, ROW)
    assert tokenizer.decode(encoded.ids) == "<|bos|><|user|>\nhi<|end|>\n<|assistant|>\nyo<|end|>"
    assert tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]) == "yo<|end|>"
    assert base.encode_prompt(tokenizer, ROW.prompt) == encoded.ids[: encoded.num_prompt_tokens]
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    assert base.count_lengths(tokenizer, [ROW]) == [(encoded.num_prompt_tokens, 3)]
    assert base.stop_token_ids(tokenizer) == [tokenizer.eos_token_id]


def test_a_model_without_a_template_gets_a_plain_one(tmp_path):
    tokenizer = loaded(tmp_path, make_tokenizer(None))
    encoded = base.encode_example(tokenizer, example(("system", "s"), ("user", "hi"), ("assistant", "yo")))
    assert tokenizer.decode(encoded.ids) == "### System:\ns\n\n### User:\nhi\n\n### Assistant:\nyo<|end|>"


@pytest.mark.parametrize("specials", [["<|end|>", "[PAD]"], ["<|end|>", "<|reserved_7|>"], ["<|end|>"]])
def test_pad_is_never_the_end_token_and_adds_no_embedding_row(tmp_path, specials):
    before = make_tokenizer(None, specials, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer = loaded(tmp_path, before)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.pad_token_id < len(before) == len(tokenizer)
    if len(specials) == 2:
        assert tokenizer.pad_token == specials[1]


def test_the_end_token_is_the_templates_even_where_the_tokenizer_names_another(tmp_path):
    tokenizer = make_tokenizer(TEMPLATE, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|system|>")
    tokenizer = loaded(tmp_path, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert base.end_token_id(tokenizer) == end
    assert base.encode_example(tokenizer, ROW).ids[-1] == end
    assert base.stop_token_ids(tokenizer) == sorted([end, tokenizer.eos_token_id])


def test_thinking_templates(tmp_path):
    """Qwen3's way: the switch puts the empty think block into the prompt; without a switch it is in the answer."""
    block = "<think>\n\n</think>\n\n"
    rendered = TEMPLATE.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    tokenizer = loaded(tmp_path, make_tokenizer(rendered))
    encoded = base.encode_example(tokenizer, ROW)
    assert tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]) == block + "yo<|end|>"
    both = rendered[: rendered.rindex("<|assistant|>")] + "<|assistant|>\n" + block + "{% endif %}"
    tokenizer.chat_template = both
    encoded = base.encode_example(tokenizer, ROW)
    assert tokenizer.decode(encoded.ids[encoded.num_prompt_tokens :]) == "yo<|end|>"


def test_a_template_that_rewrites_history_is_refused(tmp_path):
    tokenizer = loaded(tmp_path, make_tokenizer())
    prompt_only = TEMPLATE[: TEMPLATE.rindex("<|assistant|>")] + "<|assistant|>\n<|system|>{% endif %}"
    tokenizer.chat_template = prompt_only
    with pytest.raises(ModelError, match=r"t\.jsonl:1: the chat template rewrites the conversation"):
        base.encode_example(tokenizer, ROW)
    tokenizer.chat_template = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")
    with pytest.raises(ModelError, match="does not carry the answer 'yo' unchanged"):
        base.encode_example(tokenizer, ROW)


def test_a_template_without_system_role_takes_it_into_the_first_user_turn(tmp_path):
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = loaded(tmp_path, make_tokenizer(refusing + TEMPLATE))
    ids = base.encode_prompt(tokenizer, (Message("system", "s"), Message("user", "hi")))
    assert tokenizer.decode(ids) == "<|bos|><|user|>\ns\n\nhi<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        ("shoestring-33m", "did you mean 'shoestring-3m'"),
        ("no such model", "no hub name of the shape OWNER/NAME"),
        ("{folder}", "holds no config.json"),
        ("{adapter}", "holds an adapter"),
    ],
)
def test_unknown_models_are_named_with_the_next_step(tmp_path, name, message):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=message):
        base.resolve_model(name.format(folder=tmp_path, adapter=tmp_path / "adapter"))


def test_model_folders_are_looked_for_beside_the_run_file(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    for folder in (project / "models/m", project / "shoestring-1m", here / "only-here", tmp_path / "shared"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)

    def seen(*models):
        config = RunConfig.model_validate(
            {"name": "t", "task": {"kind": "chat", "bar": 0.5}, "data": {"train": "t.jsonl"}, "models": list(models)}
        )
        return locate.with_folders(config, project).models

    assert seen("models/m", "./models/m", "../shared") == [*[str(project / "models/m")] * 2, str(tmp_path / "shared")]
    same = ["embedded", "shoestring-1m", "Qwen/Qwen3-0.6B", str(here / "only-here")]
    assert seen(*same) == same
    with pytest.raises(ConfigError, match=f"beside the run file.*{here / 'only-here'}"):
        seen("only-here")


def test_tokenizers_that_count_alike_are_known_as_one(tmp_path):
    templates = {"first": TEMPLATE, "again": TEMPLATE, "plain": None}
    first, again, plain = (loaded(tmp_path / name, make_tokenizer(text)) for name, text in templates.items())
    assert tokens.tokenizer_print(first) == tokens.tokenizer_print(again) != tokens.tokenizer_print(plain)


def test_a_hub_name_out_of_reach_is_refused_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    locate.hub_options.cache_clear()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        base.load_tokenizer("owner/nothing-of-this-name")


def test_device_is_what_the_hardware_has(monkeypatch):
    import torch

    found = base.detect_device(3)
    assert found.num_threads == 3 and found.memory_bytes > 2**28 and found.dtype_reason
    if found.kind == "cpu":
        monkeypatch.setattr(device, "_cpu_bfloat16", lambda: (False, "no bfloat16 here"))
        assert base.detect_device().dtype == "float32"
        assert base.detect_device().num_threads == torch.get_num_threads()


def test_memory_limit_is_the_smallest_of_the_control_groups(tmp_path):
    assert device._memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert device._memory_limit_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert device._memory_limit_bytes(tmp_path) == 2 * 1024**3


@pytest.mark.parametrize("quantise", [False, True])
def test_the_base_is_frozen_and_nothing_is_raised_to_float32(tiny, quantise):
    import torch

    from shoestring.records import Device

    if quantise:
        pytest.importorskip("bitsandbytes")
    cpu = Device("cpu", "cpu", 2**30, 1, "bfloat16", "")
    model = base.load_base(tiny, device=cpu, quantise=quantise)
    kinds = {p.dtype for p in model.parameters()}
    assert kinds == ({torch.bfloat16, torch.uint8} if quantise else {torch.bfloat16})
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_nf4_on_mps_is_refused_with_the_alternative(tiny):
    from shoestring.records import Device

    with pytest.raises(ModelError, match="use method: lora"):
        base.load_base(tiny, device=Device("mps", "M3", 2**34, 4, "float32", ""), quantise=True)
