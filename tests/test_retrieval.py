"""Retrieval: ranks checked by hand, documents of each kind, passages in prompts, recall counted as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shoestring.decide.documents import cut, document_files, read_passages, text_of
from shoestring.decide.passages import example_with, facts_of, fitted, recall, with_passages
from shoestring.decide.retrieval import Retriever, fused, word_overlap, words
from shoestring.errors import DataError, ModelError
from shoestring.messages import TOOLS
from shoestring.records import Device, Example, Message
from shoestring.train.sentences import load_encoder

TEXTS = ["the pump is in bay four", "a valve and a pump and a pump", "nothing of interest", ""]
CPU = Device("cpu", "cpu", 2**33, 1, "float32", "")


def num_words(text: str) -> int:
    return len(text.split())


def row(text: str, answer: str, **more) -> Example:
    return Example((Message("user", text), Message("assistant", answer)), (1, 2), **more)


# Ranking


def test_words_are_folded_and_scripts_without_spaces_read_by_character() -> None:
    assert words("The PUMP, v2.1!") == ["the", "pump", "v2", "1"]
    assert words("泵在四号库") == list("泵在四号库")
    assert word_overlap(frozenset("abc"), frozenset("bcd")) == 0.5


def test_bm25_ranks_by_the_words_that_are_rare_and_leaves_out_what_shares_none() -> None:
    found = Retriever(TEXTS).search(["pump valve", "bay", "zebra", ""], 3)
    assert found == [[1, 0], [0], [], []]


def test_bm25_is_that_of_the_formula() -> None:
    """Lucene's variant, k1 = 1.5, b = 0.75, by hand for one word in one of two texts of equal length."""
    retriever = Retriever(["red fish", "blue fish"])
    (score,) = [s for s in retriever.index.get_scores(["red"]) if s > 0]
    idf = np.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert score == pytest.approx(idf * 1 / (1 + 1.5), rel=1e-5)


def test_texts_without_a_word_are_searched_in_vain() -> None:
    assert Retriever(["", "..."]).search(["pump"], 2) == [[]]
    assert Retriever([]).search(["pump"], 2) == [[]]


def test_ranks_are_fused_by_reciprocal_rank() -> None:
    # 1/61 + 1/62 for both 5 and 7 (the lower place first), 1/63 for 9 and 2.
    assert fused([[5, 7, 9], [7, 5, 2]]) == [5, 7, 2, 9]
    assert fused([[3], []]) == [3]


def test_an_encoder_finds_what_words_do_not_and_both_are_fused() -> None:
    about = {"water": (1.0, 0.0), "pump": (0.9, 0.1), "ledger": (0.0, 1.0)}

    def encode(texts, are_questions):
        return np.array([about[text.split()[-1]] for text in texts])

    retriever = Retriever(["the pump", "the ledger"], encode)
    assert retriever.search(["flow of water"], 1) == [[0]]
    assert retriever.search(["a ledger"], 2) == [[1, 0]]


def test_a_sentence_model_pools_the_tokens_of_a_text(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaModel

    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encode = load_encoder(tmp_path, CPU)
    texts = ["one", "a longer text"]
    both = encode(texts, False)
    with torch.no_grad():
        alone = model(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state.mean(1)[0]
    assert both.shape == (2, 16)
    np.testing.assert_allclose(both[0], alone.numpy(), atol=1e-5)

    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="pools by pooling_mode_max_tokens"):
        load_encoder(tmp_path, CPU)
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    first = load_encoder(tmp_path, CPU)
    with torch.no_grad():
        prefixed = model(**tokenizer("q: one", return_tensors="pt")).last_hidden_state[0, 0]
    np.testing.assert_allclose(first(["one"], True)[0], prefixed.numpy(), atol=1e-5)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_encoder(tmp_path / "none", CPU)


# Documents


def test_paragraphs_stay_together_while_they_fit_and_the_border_is_in_both() -> None:
    assert cut("# Head\n\none two three\n\nfour", 20, num_words) == ["# Head\n\none two three\n\nfour"]
    # Of 14 words 15 % are 2.1: a paragraph of one or two words is carried over, one of six is not.
    text = "\n\n".join(f"a{i} b{i} c{i} d{i} e{i} f{i}\n\ng{i}" for i in range(4))
    starts = [passage.split()[0] for passage in cut(text, 14, num_words)]
    assert starts == ["a0", "g1", "g3"]
    assert all(num_words(passage) <= 14 for passage in cut(text, 14, num_words))


def test_a_long_paragraph_is_cut_after_sentences_a_long_sentence_between_words_and_nothing_is_lost() -> None:
    sentences = [f"Number {i} is a sentence of eight words." for i in range(9)]
    passages = cut(" ".join(sentences), 20, num_words)
    assert all(num_words(p) <= 20 for p in passages) and len(passages) > 3
    assert all(any(s in p for p in passages) for s in sentences)
    endless = " ".join(f"w{i}" for i in range(100))
    assert [w for p in cut(endless, 10, num_words) for w in p.split()] == endless.split()
    assert all(len(p) <= 8 for p in cut("x" * 50, 8, len))
    assert cut(" \n\n ", 10, num_words) == []


@pytest.mark.parametrize("size", [5, 9, 33])
def test_every_word_of_a_document_is_in_a_passage_in_order(size: int) -> None:
    text = "\n\n".join(" ".join(f"p{i}w{j}." for j in range(1 + i * 3 % 11)) for i in range(20))
    passages = cut(text, size, num_words)
    assert all(num_words(p) <= size for p in passages)
    assert list(dict.fromkeys(w for p in passages for w in p.split())) == text.split()


def test_html_is_read_as_a_browser_shows_it(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        "<html><head><title>T</title><style>p {}</style></head><body><h1>Bays</h1><p>The <b>pump</b>\n is in "
        "bay&nbsp;4.</p><script>var x = '<p>no</p>'</script><ul><li>one<li>two</ul><table><tr><td>a</td><td>b</td>"
        "</tr></table></body></html>"
    )
    assert text_of(page) == "Bays\n\nThe pump is in bay 4.\n\none\n\ntwo\n\na b"


def pdf_of(text: str) -> bytes:
    """A page in a standard font, as PDF 1.4 writes it."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        table,
        len(out),
    )


def test_files_globs_and_folders_are_documents(tmp_path: Path) -> None:
    (tmp_path / "docs/deep").mkdir(parents=True)
    (tmp_path / "docs/.hidden").mkdir()
    (tmp_path / "docs/.hidden/c.txt").write_text("not this")
    (tmp_path / "docs/a.md").write_text("# A\n\nfirst")
    (tmp_path / "docs/deep/b.pdf").write_bytes(pdf_of("The pump is in bay 4"))
    (tmp_path / "docs/picture.png").write_bytes(b"\x89PNG")
    files = document_files(["docs", "docs/*.md"], tmp_path)
    assert [p.name for p in files] == ["a.md", "b.pdf"]
    found = read_passages(files, 50, num_words)
    assert [(p.text, Path(p.source).name, p.number) for p in found] == [
        ("# A\n\nfirst", "a.md", 1),
        ("The pump is in bay 4", "b.pdf", 1),
    ]


def test_what_is_no_document_is_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as refused:
        document_files(["gone.md", "table.xlsx", "empty", "*.rst"], tmp_path)
    said = str(refused.value)
    assert all(part in said for part in ("gone.md: no such", "table.xlsx is none of", "holds: nothing", "*.rst"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8 text"):
        text_of(tmp_path / "latin.txt")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    with pytest.raises(DataError, match="no readable PDF"):
        text_of(tmp_path / "broken.pdf")
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text in them"):
        read_passages([tmp_path / "blank.txt"], 10, num_words)


# Passages in prompts


def test_passages_stand_before_the_last_question() -> None:
    prompt = (Message("system", "S"), Message("user", "one"), Message("assistant", "1"), Message("user", "two"))
    got = with_passages(prompt, ["P", "Q"])
    assert got[:3] == prompt[:3]
    assert got[3].content == "Passages that may help:\n\n[1] P\n\n[2] Q\n\n---\n\ntwo"
    assert with_passages(prompt, []) == prompt
    assert with_passages((Message("system", "S"),), ["P"]) == (Message("system", "S"),)
    tools = Message(TOOLS, "[]")
    assert with_passages((tools, *prompt), ["P"])[0] == tools


def test_as_many_passages_as_fit() -> None:
    prompts = [(Message("user", "short"),), (Message("user", "w " * 30),)]
    texts = [["a b c"] * 3] * 2

    def count(prompt) -> int:
        return sum(num_words(m.content) for m in prompt)

    # Head 4 + border 1 + 4 a passage ("[1]" counts): 1 + 5 + 2 * 4 = 14.
    got, nums = fitted(prompts, texts, count, [14, 14])
    assert nums == [2, 0] and count(got[0]) == 14 and got[1] == prompts[1]


def test_a_row_with_passages_keeps_id_answer_and_source() -> None:
    before = row("Where?", "bay 4", source="t.jsonl", line=3)
    after = example_with(before, ["The pump is in bay 4."])
    assert (after.id, after.completion, after.line) == (before.id, "bay 4", 3)
    assert after.user_text.endswith("---\n\nWhere?") and example_with(before, []) == before


# Recall


def test_facts_are_what_the_question_does_not_say() -> None:
    assert facts_of(row("Where is the pump?", "Bay 4"), "generate") == [" bay 4 "]
    assert facts_of(row("Is bay 4 full?", "bay 4"), "generate") == []
    record = row("order by Ann", json.dumps({"name": "Ann", "code": "X-7", "n": 3, "ok": True, "none": None}))
    assert facts_of(record, "extract") == [" x 7 ", " 3 "]
    assert facts_of(row("how many?", "so 5 + 5\n#### 10"), "math") == [" 10 "]
    long = row("tell", "The store in Berlin opens at 9:30 and Ms Novak has the key, please ring twice.")
    assert facts_of(long, "chat") == [" berlin ", " 9 30 ", " ms novak "]


def test_recall_by_hand() -> None:
    texts = ["pump in bay 4", "valve in bay 7", "motor in bay 9"]
    rows = [row("pump?", "bay 4"), row("valve?", "bay 7"), row("motor?", "bay 9"), row("sensor?", "bay 1")]
    found = [[0, 1], [0, 1], [0, 1], [0, 1]]
    got = recall(rows, "generate", texts, found, [1, 1, 2, 2])
    assert (got.num_rows, got.num_findable) == (4, 3)
    assert {k: v.value for k, v in got.at.items()} == {"1": 1 / 3, "2": pytest.approx(2 / 3)}
    assert got.in_prompt is not None and got.in_prompt.value == pytest.approx(1 / 3)
    nothing = recall(rows[3:], "generate", texts, [[0]], [1])
    assert nothing.num_findable == 0 and nothing.in_prompt is None
