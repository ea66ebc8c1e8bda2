"""The cheapest rival of a classifier: TF-IDF of words and characters with a linear model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..config import TaskConfig
from ..errors import DataError, require
from ..evaluate.score import score_arm
from ..records import ArmScore, Completion, Example, Message, Progress, no_progress

ARM = "TF-IDF + linear"


def linear_arm(
    train: Sequence[Example],
    examples: Sequence[Example],
    task: TaskConfig,
    labels: tuple[str, ...] | None,
    seed: int = 0,
    *,
    price_usd_per_hour: float = 0.0,
    progress: Progress = no_progress,
) -> ArmScore:
    """Fit on the training rows, predict the held-out rows, score like any arm; wall_s includes the fit.

    Words (1-2) and characters within words (2-5), sublinear tf, linear SVM with C = 1.
    Raises: DataError when the task is not classification or has one label; MissingDependency.
    """
    if task.kind != "classify":
        raise DataError(f"the linear arm classifies; it cannot do task kind {task.kind!r}; leave it out of decide.arms")
    answers = [example.completion.strip() for example in train]
    if len(set(answers)) < 2:
        raise DataError(f"the training rows hold {len(set(answers))} distinct labels; a classifier needs two or more")
    require("sklearn", extra="linear", purpose="the linear baseline (decide.arms)")
    from sklearn.svm import LinearSVC

    progress("linear", 0, 1)
    started = time.monotonic()
    features = _features()
    train_matrix = features.fit_transform([_text(example) for example in train])
    classifier = LinearSVC(C=1.0, random_state=seed).fit(train_matrix, answers)
    predicted = classifier.predict(features.transform([_text(example) for example in examples]))
    wall_s = time.monotonic() - started
    progress("linear", 1, 1)
    completions = [Completion(str(label), 0, 0, wall_s / len(examples)) for label in predicted]
    return score_arm(
        arm=ARM,
        kind="linear",
        model="sklearn LinearSVC",
        task=task,
        examples=examples,
        completions=completions,
        labels=labels,
        wall_s=wall_s,
        seed=seed,
        details={"num_train": len(train), "num_features": int(train_matrix.shape[1])},
        price_usd_per_hour=price_usd_per_hour,
    )


def _text(example: Example) -> str:
    """What a row says: its prompt without the system message that all rows may share."""
    turns: tuple[Message, ...] = tuple(m for m in example.prompt if m.role != "system")
    return "\n".join(m.content for m in turns)


def _features() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    return FeatureUnion([("words", words), ("characters", characters)])
