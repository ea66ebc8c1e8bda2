"""Whether a classifier's confidence is its accuracy: expected calibration error and Brier score.

Shapes: N rows, K labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NUM_BINS = 15


def calibration(log_probs_NK: np.ndarray, right_N: np.ndarray) -> dict[str, Any]:
    """ece, brier, and the bins with rows: mean confidence, accuracy, rows.

    log_probs_NK: of each label as the whole answer; probabilities are made to sum to 1. right_N: the expected label.
    ECE: of the most probable label, over 15 bins of equal width (Guo et al. 2017,
    1706.04599). brier: mean over rows of the squared differences of all labels, 0 to 2 (Brier 1950).
    """
    shifted_NK = log_probs_NK - log_probs_NK.max(axis=1, keepdims=True)
    probs_NK = np.exp(shifted_NK) / np.exp(shifted_NK).sum(axis=1, keepdims=True)
    confidence_N = probs_NK.max(axis=1)
    hit_N = probs_NK.argmax(axis=1) == right_N
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for number in np.unique(bin_N):
        here = bin_N == number
        confidence, accuracy = float(confidence_N[here].mean()), float(hit_N[here].mean())
        bins.append({"confidence": confidence, "accuracy": accuracy, "rows": int(here.sum())})
    num_rows = len(right_N)
    expected_NK = np.eye(log_probs_NK.shape[1])[right_N]
    return {
        "ece": sum(b["rows"] / num_rows * abs(b["confidence"] - b["accuracy"]) for b in bins),
        "brier": float(((probs_NK - expected_NK) ** 2).sum(axis=1).mean()),
        "label_accuracy": float(hit_N.mean()),
        "rows": num_rows,
        "bins": bins,
    }
