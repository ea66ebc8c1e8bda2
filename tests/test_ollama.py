"""serve/ollama: a chat template put together again for Go's templates, or refused; the Modelfile."""

import json
import shutil
import subprocess

import pytest

from scripts.check_llamacpp import GO
from shoestring.errors import ModelError
from shoestring.messages import Message
from shoestring.serve.ollama import frame_of, write_modelfile
from shoestring.train.base import load_tokenizer
from shoestring.train.tools import render
from tests import chat_templates, tiny

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|system|>\nYou are a helper.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TALK = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]


def test_the_embedded_familys_frame_by_hand():
    frame, notes = frame_of(load_tokenizer("shoestring-1m"))
    assert (frame.head, frame.no_system, frame.prompt, notes) == ("<|bos|>", "", "<|assistant|>\n", [])
    assert frame.before["user"] == "<|user|>\n" and set(frame.after.values()) == {"<|end|>\n"}
    assert frame.render(TALK[:1]) == "<|bos|><|user|>\none<|end|>\n<|assistant|>\n"
    assert frame.go_template() == (
        '{{ "<|bos|>" }}{{ range .Messages }}'
        '{{ if eq .Role "system" }}{{ "<|system|>\\n" }}{{ .Content }}{{ "<|end|>\\n" }}'
        '{{ else if eq .Role "user" }}{{ "<|user|>\\n" }}{{ .Content }}{{ "<|end|>\\n" }}'
        '{{ else if eq .Role "assistant" }}{{ "<|assistant|>\\n" }}{{ .Content }}{{ "<|end|>\\n" }}'
        '{{ end }}{{ end }}{{ "<|assistant|>\\n" }}'
    )
    assert frame.go_template("<|bos|>").startswith("{{ range")


@pytest.mark.parametrize("template", [tiny.TEMPLATE, DEFAULT_SYSTEM, *chat_templates.TEMPLATES.values()])
def test_a_frame_renders_as_the_template_does(template):
    tokenizer = tiny.make_tokenizer(template[0] if isinstance(template, tuple) else template)
    frame, _ = frame_of(tokenizer)
    assert frame.render(TALK) == render(tokenizer, TALK, "", generation_prompt=True)
    assert bool(frame.no_system) is (template == DEFAULT_SYSTEM)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}", "otherwise"),
        ("{{ messages[-1].content }}:", "leaves out a turn's text"),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}", "leaves out a turn's text"),
        ("{{ messages | length }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", ""),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.content }}{% endfor %}", ""),
    ],
)
def test_a_template_that_does_more_is_refused(template, words):
    with pytest.raises(ModelError, match=rf"cannot be written for Ollama: .*{words}.*llama-server --jinja"):
        frame_of(tiny.make_tokenizer(template))


def test_stripped_white_space_is_told():
    template = tiny.TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
    _, notes = frame_of(tiny.make_tokenizer(template))
    assert len(notes) == 1 and "strips white space" in notes[0]


def test_the_modelfile(tmp_path):
    tokenizer = load_tokenizer("shoestring-1m")
    assert write_modelfile(tmp_path, "t.gguf", tokenizer, system="Be brief.", context_tokens=1024) == []
    text = (tmp_path / "Modelfile").read_text()
    assert text.splitlines()[1] == "FROM ./t.gguf" and 'SYSTEM """Be brief."""' in text
    for line in ("temperature 0", "repeat_penalty 1", "num_ctx 1024", 'stop "<|end|>"'):
        assert f"PARAMETER {line}\n" in text
    with pytest.raises(ModelError, match="ends a text in a Modelfile"):
        write_modelfile(tmp_path, "t.gguf", tokenizer, system='say """')


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_go_renders_it_so(tmp_path):
    """By Go's own text/template; scripts/check_llamacpp.py does it with a real export."""
    (tmp_path / "main.go").write_text(GO)
    frame, _ = frame_of(tiny.make_tokenizer(DEFAULT_SYSTEM))
    turns = [{"Role": m.role, "Content": m.content} for m in TALK]
    asked = json.dumps({"Template": frame.go_template(), "System": "", "Messages": turns})
    env = {"GO111MODULE": "off", "PATH": "/usr/bin:/bin:/usr/local/go/bin", "HOME": str(tmp_path), "GOFLAGS": "-p=1"}
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")], input=asked, env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout == frame.render(TALK)
