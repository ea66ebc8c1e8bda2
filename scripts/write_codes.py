"""Write docs/fault-codes.md from the code (a test keeps it current)."""

from pathlib import Path

from shoestring.data.codes import catalogue

PATH = Path(__file__).resolve().parent.parent / "docs" / "fault-codes.md"

if __name__ == "__main__":
    PATH.write_text(catalogue(), encoding="utf-8")
    print(PATH)
