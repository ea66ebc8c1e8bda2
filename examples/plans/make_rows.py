"""Write the rows of the run files here: 100,000 support tickets with their records, and 5,000 pairs of records.

    python examples/plans/make_rows.py [FOLDER]

The tickets are those of `shoestring demo`, generated; of a pair the record of another ticket is the one that lost.
"""

import json
import random
import sys
from pathlib import Path

from shoestring.demo.tickets import sample_ticket

HERE = Path(__file__).resolve().parent
NUM_TICKETS, NUM_PAIRS = 100_000, 5_000
SYSTEM = (
    "You read support tickets of a shop for bicycles and camping gear. Return one JSON object with the keys of the "
    "ticket: what the customer wants, the order, the product, the date, and how urgent it is. Leave out what the "
    "ticket does not say, copy names and numbers as they stand, and add nothing else."
)


def write(folder: Path, num_tickets: int = NUM_TICKETS, num_pairs: int = NUM_PAIRS, seed: int = 0) -> None:
    """tickets.jsonl and pairs.jsonl."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tickets.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(num_tickets):
            ticket = sample_ticket(rng)
            row = {"system": SYSTEM, "prompt": ticket.prompt, "completion": ticket.completion}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(num_pairs):
            ticket, other = sample_ticket(rng), sample_ticket(rng)
            row = {"prompt": ticket.prompt, "chosen": ticket.completion, "rejected": other.completion}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
