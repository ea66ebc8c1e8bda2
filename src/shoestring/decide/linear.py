"""The cheapest rival of a language model: TF-IDF of words and characters with linear models.

N training rows, R rows to answer, F features.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from ..config import TaskConfig
from ..errors import DataError, require
from ..evaluate.score import score_arm
from ..records import ArmScore, Completion, Example, Message, Progress, no_progress
from .extraction import MAX_FIT_ROWS, extract, learn

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

    Words (1-2) and characters within words (2-5), sublinear tf, linear SVM with C = 1: one for the label, or one for
    each field of a record that has few values (decide.extraction).
    Raises: DataError where the task has neither, or one label alone; MissingDependency.
    """
    if task.kind not in ("classify", "extract"):
        raise DataError(
            f"the linear arm classifies and fills fields; it cannot do task kind {task.kind!r}; leave it "
            "out of decide.arms"
        )
    require("sklearn", extra="linear", purpose="the linear baseline (decide.arms)")
    progress("linear", 0, 1)
    started = time.monotonic()
    answers, details = (_labels if task.kind == "classify" else _records)(train, examples, seed)
    wall_s = time.monotonic() - started
    progress("linear", 1, 1)
    completions = [Completion(answer, 0, 0, wall_s / len(examples)) for answer in answers]
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
        details={"num_train": len(train), **details},
        price_usd_per_hour=price_usd_per_hour,
    )


def _labels(train: Sequence[Example], rows: Sequence[Example], seed: int) -> tuple[list[str], dict[str, Any]]:
    answers = [example.completion.strip() for example in train]
    if len(set(answers)) < 2:
        raise DataError(f"the training rows hold {len(set(answers))} distinct labels; a classifier needs two or more")
    model = _Linear(train, rows, seed)
    return model.classify(answers), {"num_features": model.num_features}


def _records(train: Sequence[Example], rows: Sequence[Example], seed: int) -> tuple[list[str], dict[str, Any]]:
    learned = learn(train)
    fitted = sorted(random.Random(seed).sample(range(len(train)), min(len(train), MAX_FIT_ROWS)))
    model = _Linear([train[i] for i in fitted], rows, seed)
    answers = extract(learned, rows, lambda labels: model.classify([labels[i] for i in fitted]))
    return answers, {"num_features": model.num_features, "num_fitted": len(fitted), "fields": learned.told}


class _Linear:
    """Rows as features, once; a classifier for each set of labels."""

    def __init__(self, train: Sequence[Example], rows: Sequence[Example], seed: int) -> None:
        features = _features()
        self.train_NF = features.fit_transform([_text(example) for example in train])
        self.rows_RF = features.transform([_text(example) for example in rows])
        self.seed, self.num_features = seed, int(self.train_NF.shape[1])

    def classify(self, labels: Sequence[str]) -> list[str]:
        """The label of each row, learned from those of the training rows."""
        from sklearn.svm import LinearSVC

        if len(set(labels)) == 1:
            return [labels[0]] * self.rows_RF.shape[0]
        classifier = LinearSVC(C=1.0, random_state=self.seed).fit(self.train_NF, labels)
        return [str(label) for label in classifier.predict(self.rows_RF)]


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
