"""The split of conversations and rankings by their first prompt, which is never in two splits.

The first prompt is the first message of the user: the root of a tree, the first turn of a dialogue,
the question of a ranking. Letter case and spaces do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.chat.turns import RowError
from stages.data.conversation_dataset import Message
from stages.data.hashing import hash128_hex, hash_fraction

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("eval", "evaluation", "val", "valid", "validation", "dev"), "eval"),
    **dict.fromkeys(("test", "heldout"), "eval"),
}
IN_EVAL = "prompt_in_eval"
"""Reason to leave out what is in the train split, with a first prompt of the eval split."""

SPLIT_VALUE = "split_value"
"""Reason to leave out a row whose field names no split."""


def named_split(name: str, value: Any) -> str:
    """Return the split that a field of a row names.

    Args:
        name: the field.
        value: its value.

    Raises:
        RowError: the value is not the name of a split.
    """
    split = _NAMES.get(str(value).strip().lower())
    if split is None:
        known = ", ".join(_NAMES)
        raise RowError(SPLIT_VALUE, name, f"expected one of {known}, got {str(value)[:80]!r}")
    return split


def prompt_key(messages: Sequence[Message]) -> str:
    """Return the hash of the first prompt."""
    first = next((message for message in messages if message.role == "user"), messages[0])
    return hash128_hex(" ".join(first.content.split()).casefold())


@dataclass
class PromptSplit:
    """Assignment of rows to `train` and `eval`."""

    eval_share: float
    """Share of first prompts in the eval split, by hash."""
    seed: int
    num_train_sources: int
    """Number of sources before those whose rows are all in the eval split."""
    given: bool = False
    """True if fields or sources put rows in the eval split."""
    held_out: set[str] = field(default_factory=set)
    """First prompts of the rows that are given to the eval split."""

    def is_given_eval(self, origin: int, named: str | None) -> bool:
        """Return whether the source or the field of a row puts it in the eval split."""
        return origin >= self.num_train_sources or named == "eval"

    def assign(self, key: str, origin: int, named: str | None) -> str:
        """Return the split of a row, or `IN_EVAL` if it must not be in the train split.

        Args:
            key: hash of its first prompt.
            origin: position of its source.
            named: the split that its field names.
        """
        if self.is_given_eval(origin, named):
            return "eval"
        if key in self.held_out:
            return IN_EVAL
        return "eval" if hash_fraction(f"{self.seed} {key}") < self.eval_share else "train"
