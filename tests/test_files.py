"""Reading and writing whole files."""

from shoestring.files import read_whole_lines


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two\u0085three"}\n{"text": "cut', encoding="utf-8")
    assert read_whole_lines(path) == [{"text": "one\u2028two\u0085three"}]
