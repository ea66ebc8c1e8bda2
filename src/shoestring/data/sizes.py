"""How many rows are held out, and how many tell training when to stop."""

from __future__ import annotations

from ..errors import DataError

MIN_ROWS = 20  # below this neither training nor a score means anything
EVAL_FRAC, EVAL_MIN, EVAL_MAX, EVAL_MAX_FRAC = 0.1, 100, 1000, 0.3
DEV_FRAC, DEV_MIN, DEV_MAX, DEV_MAX_FRAC = 0.05, 32, 256, 0.2


def eval_size(num_rows: int, asked: int | None) -> int:
    """Rows held out of so many. Raises: DataError where curate.eval_rows leaves too few to train on."""
    if asked is not None:
        if num_rows - asked < MIN_ROWS:
            raise DataError(
                f"curate.eval_rows = {asked} leaves {num_rows - asked} of {num_rows} rows for training, "
                f"at least {MIN_ROWS} are needed; ask for fewer or add rows"
            )
        return asked
    return int(min(max(EVAL_FRAC * num_rows, EVAL_MIN), EVAL_MAX, EVAL_MAX_FRAC * num_rows))


def dev_size(num_rows: int) -> int:
    """Rows of the others that stop training early."""
    return int(min(max(DEV_FRAC * num_rows, DEV_MIN), DEV_MAX, DEV_MAX_FRAC * num_rows))
