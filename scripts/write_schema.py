"""Write src/shoestring/run.schema.json, what editors complete run files from (a test keeps it current)."""

import json
from pathlib import Path

from shoestring.config import json_schema

PATH = Path(__file__).resolve().parent.parent / "src" / "shoestring" / "run.schema.json"

if __name__ == "__main__":
    PATH.write_text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(PATH)
