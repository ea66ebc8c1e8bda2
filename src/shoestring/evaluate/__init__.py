"""Measuring: metrics, intervals, scores of an arm, and generation in batches."""
