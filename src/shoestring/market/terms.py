"""What the bill and the finish depend on beside the price: terms.csv, each with its range, source and date."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from ..records import Estimate

TERMS_CSV = Path(__file__).with_name("terms.csv")


@dataclass(frozen=True, slots=True)
class Term:
    """One row of terms.csv; seller empty: of every seller that has no row of its own."""

    quantity: str
    seller: str
    value: Estimate
    unit: str
    as_of: date
    basis: str
    source: str


@functools.cache
def terms() -> dict[tuple[str, str], Term]:
    """Rows by quantity and seller."""
    with TERMS_CSV.open(encoding="utf-8", newline="") as file:
        rows = [
            Term(
                row["quantity"],
                row["seller"],
                Estimate(float(row["expected"]), float(row["low"]), float(row["high"])),
                row["unit"],
                date.fromisoformat(row["as_of"]),
                row["basis"],
                row["source"],
            )
            for row in csv.DictReader(file)
        ]
    return {(row.quantity, row.seller): row for row in rows}


def term(quantity: str, seller: str = "") -> Term:
    """The seller's row of a quantity, else everybody's."""
    return terms().get((quantity, seller)) or terms()[quantity, ""]


def value(quantity: str, seller: str = "") -> Estimate:
    """Low, expected and high of a quantity."""
    return term(quantity, seller).value
