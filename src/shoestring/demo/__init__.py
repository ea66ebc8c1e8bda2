"""The demonstration data set, generated with its ground truth."""
