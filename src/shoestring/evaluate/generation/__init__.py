"""Greedy generation with a model on this machine."""

from .local import LocalGenerator, load_generator, make_generate
from .padded import decode_greedy

__all__ = ["LocalGenerator", "decode_greedy", "load_generator", "make_generate"]
