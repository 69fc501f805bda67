"""Fixed splits of the documented objects of the Python installation.

An object belongs to one split by the hash of the first sentence of its docstring, so that equal
sentences of different objects stay together. The shares are constants on purpose: the stages that
build questions and preferences and the reader of `python:docs` must agree on them, or training
would contain what evaluation measures.
"""

from __future__ import annotations

from stages.data.hashing import hash_fraction
from stages.text.python_docs.docstrings import MAX_SOURCE, first_sentence
from stages.text.unicode_repair import repair

EVAL_SHARE = 0.1
UNLABELLED_SHARE = 0.3


def split_of(sentence: str) -> str:
    """Return `train`, `eval` or `unlabelled`, by the hash of the sentence in lower case."""
    place = hash_fraction(f"summary {sentence.lower()}")
    if place < EVAL_SHARE:
        return "eval"
    return "unlabelled" if place >= 1 - UNLABELLED_SHARE else "train"


def is_held_out(doc: str) -> bool:
    """Return whether an object with this docstring is in the `eval` split, whatever the length of
    its first sentence."""
    sentence = first_sentence(repair(doc), min_length=1, max_length=MAX_SOURCE)
    return sentence is not None and split_of(sentence) == "eval"
