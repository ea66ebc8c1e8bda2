"""Texts of answers as they come: characters whole, stops cut, calls held; whatever the pieces, the same text."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shoestring.messages import Message, ToolCall
from shoestring.serve.engine import Piece, Token
from shoestring.serve.gateway.text import CALLS, Detokeniser, Reader, TokenBytes, before_call
from shoestring.train.base import load_tokenizer
from shoestring.train.tools import own_text
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
SNOW = "né ☃ 日本 \U0001f469‍\U0001f680!"


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


def whole(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def read(ids: list[int], finish: str = "stop", stops: tuple[str, ...] = (), holds: str = "", size: int = 1) -> Any:
    """The reader at the end, and what it told; size: tokens a piece."""
    reader = Reader(0, Detokeniser(TOKENIZER), stops, holds)
    told = []
    pieces = [Piece(tuple(Token(i) for i in ids[at : at + size])) for at in range(0, len(ids), size)]
    for piece in [*pieces, Piece((), finish)]:
        if not reader.finish:
            told.append(reader.feed(piece))
    return reader, [delta for delta in told if delta]


def test_characters_come_whole() -> None:
    own = Detokeniser(TOKENIZER)
    told = [own.add(i) for i in ids_of("é☃")]
    assert told == ["", "é", "", "", "☃"]


@pytest.mark.parametrize("name", ["tiny", "shoestring-1m"])
def test_pieces_add_up_to_what_the_tokenizer_makes_of_all(name: str) -> None:
    tokenizer = TOKENIZER if name == "tiny" else load_tokenizer(name)
    draw = random.Random(0)
    texts = [SNOW, "a  b\n\n c", '{"a": [1, 2]}', "", "�odd"]
    all_ids = [ids_of(text, tokenizer) for text in texts]
    all_ids += [[draw.randrange(len(tokenizer)) for _ in range(draw.randrange(40))] for _ in range(200)]
    for ids in all_ids:
        own = Detokeniser(tokenizer)
        assert "".join(own.add(i) for i in ids) + own.rest() == whole(tokenizer, ids)


def sentence_pieces() -> Any:
    """A tokenizer as Llama 2 and Gemma have: blanks as a mark, bytes for what the vocabulary lacks."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "b", "▁☃", "é"]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def test_blanks_of_sentence_pieces_are_kept_within_and_left_out_at_the_start() -> None:
    tokenizer = sentence_pieces()
    own, draw = Detokeniser(tokenizer), random.Random(0)
    ids = ids_of("a b ☃ aé日", tokenizer)
    assert "".join(own.add(i) for i in ids) + own.rest() == whole(tokenizer, ids) == "a b ☃ aé日"
    for _ in range(300):
        text = "".join(draw.choice("ab ☃é日x") for _ in range(draw.randrange(20)))
        ids = ids_of(text, tokenizer) + [draw.randrange(258, len(tokenizer)) for _ in range(3)]
        own = Detokeniser(tokenizer)
        assert "".join(own.add(i) for i in ids) + own.rest() == whole(tokenizer, ids)
    assert b"".join(TokenBytes(tokenizer).of(i) for i in ids_of("a 日", tokenizer)).decode() == " a 日"


@pytest.mark.parametrize("name", ["tiny", "shoestring-1m"])
def test_bytes_of_tokens_add_up_to_the_text(name: str) -> None:
    tokenizer = TOKENIZER if name == "tiny" else load_tokenizer(name)
    own, ids = TokenBytes(tokenizer), ids_of(SNOW + " two words", tokenizer)
    assert b"".join(own.of(i) for i in ids).decode() == SNOW + " two words"
    assert own.of(len(tokenizer) + 5) == b""


def test_a_stop_string_is_cut_and_ends_the_answer() -> None:
    reader, told = read(ids_of("one END two"), stops=("END",))
    assert (reader.text, reader.finish, reader.num_tokens) == ("one ", "stop", 7)
    assert "".join(delta.text for delta in told) == "one "
    assert [len(delta.tokens) for delta in told] == [1, 1, 1, 1, 0]  # the tokens of END are not told


def test_what_may_become_a_stop_is_held_and_then_told() -> None:
    _, told = read(ids_of("xENy"), stops=("END", "yes"))
    assert [delta.text for delta in told] == ["x", "EN", "y"]
    reader, told = read(ids_of("xEN"), "length", stops=("END",))
    assert (reader.text, reader.finish) == ("xEN", "length")


def test_of_two_stops_the_first_in_the_text_wins() -> None:
    assert read(ids_of("abcd"), stops=("cd", "bcd", "zz"))[0].text == "a"


def test_texts_do_not_depend_on_how_tokens_are_grouped() -> None:
    draw = random.Random(1)
    for _ in range(100):
        text = "".join(draw.choice('ab☃ <{"n') for _ in range(draw.randrange(30)))
        stops = tuple({"".join(draw.choice("ab☃") for _ in range(draw.randrange(1, 4))) for _ in range(2)})
        results = set()
        for size in (1, 2, 3, 100):
            reader, told = read(ids_of(text), stops=stops, holds=draw.choice(["", CALLS]), size=size)
            assert "".join(delta.text for delta in told) == reader.text
            results.add((reader.text, reader.finish, reader.num_tokens))
        assert len(results) == 1, (text, stops)
        expected = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        assert next(iter(results))[0] == text[:expected]


def test_calls_are_held_back_and_text_before_them_is_not() -> None:
    call = own_text(Message("assistant", "", (ToolCall("find", '{"a": 1}'),)))
    for text, free in (
        (f"Let me look.\n{call}", "Let me look."),
        ('Sure: {"name": "find", "arguments": {}}', "Sure:"),
        ('[{"name": "find", "arguments": {}}]', ""),
        ("<|python_tag|>{}", ""),
        ("plain text, 3 < 4", None),
        ('{"no": "call"} {"na": 1}', None),
    ):
        reader, told = read(ids_of(text), holds=CALLS)
        assert "".join(delta.text for delta in told[:-1]) == (text if free is None else free), text
        assert reader.text == text


def test_where_a_call_may_begin() -> None:
    assert before_call("ab <tool", 0) == (2, False)
    assert before_call("ab <tool_call>x", 0) == (2, True)
    assert before_call('ab {"na', 0) == (2, False)
    assert before_call("ab [", 0) == (2, False)
    assert before_call("ab", 0) == (2, False)
    assert before_call("ab {x", 0) == (5, False)


def test_what_was_read_before_is_known_of_an_answer_that_is_cut() -> None:
    reader = Reader(0, Detokeniser(TOKENIZER), stops=("!",))
    ids = TOKENIZER("a!", add_special_tokens=False).input_ids
    reader.feed(Piece((Token(ids[0]),), num_cached_tokens=7))
    told = reader.feed(Piece(tuple(Token(i) for i in ids[1:])))
    assert told is not None and told.finish == "stop" and reader.num_cached_tokens == 7
