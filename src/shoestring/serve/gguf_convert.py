"""Run by the converter's Python as a program of its own: a convert script of llama.cpp, told which pre-tokenizer.

`python gguf_convert.py CONVERT_DIR PRE SCRIPT ARGUMENTS...`. The scripts know tokenizers by a hash of one text's ids
and stop at others; PRE is taken for those (empty: stop). What was taken is printed as
`pre-tokenizer: NAME by hash|by rules`. Nothing of Shoestring is imported: that Python need not have it.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from typing import Any

UNKNOWN = 3  # exit status: the tokenizer is unknown and PRE is empty


def main() -> None:
    """Convert. Exits with UNKNOWN, or as the script does."""
    folder, pre, script, *arguments = sys.argv[1:]
    # In place of this file's own folder, whose gguf.py would hide the package of that name.
    sys.path[0:1] = [folder, f"{folder}/gguf-py"]
    text_model = importlib.import_module("conversion.base").TextModel
    by_hash, by_sentencepiece = text_model.get_vocab_base_pre, text_model._create_vocab_sentencepiece

    def named(self: Any, tokenizer: Any) -> str:
        try:
            name, how = by_hash(self, tokenizer), "by hash"
        except NotImplementedError:
            if not pre:
                sys.exit(UNKNOWN)
            name, how = pre, "by rules"
        sys.stdout.write(f"pre-tokenizer: {name} {how}\n")
        return str(name)

    def of_file(self: Any) -> Any:
        # It imports sentencepiece before it looks whether there is a file for it.
        if not (self.dir_model / "tokenizer.model").is_file():
            raise FileNotFoundError(self.dir_model / "tokenizer.model")
        return by_sentencepiece(self)

    text_model.get_vocab_base_pre = named
    text_model._create_vocab_sentencepiece = of_file
    sys.argv = [f"{folder}/{script}", *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
