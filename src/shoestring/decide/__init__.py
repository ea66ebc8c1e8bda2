"""Deciding whether to train: baselines on the held-out rows, and the verdict over measured arms."""
