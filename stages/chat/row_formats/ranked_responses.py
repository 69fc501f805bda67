"""Several responses to one prompt, with ranks (lower is better) or scores (higher is better).

{"prompt": "…", "responses": ["…", "…", "…"], "ranks": [0, 2, 1]}
{"prompt": [turns], "completions": [{"response": "…", "score": 8}, {"response": "…", "score": 3}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.chat.row_formats.chosen_rejected import QUESTIONS
from stages.chat.row_formats.message_parsing import (
    LARGEST,
    UNREADABLE,
    parse_text,
    system_message,
)
from stages.chat.row_formats.prompt_completion import parse_side
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message

LISTS = ("responses", "completions", "answers", "candidates", "outputs")
RANKS = ("ranks", "rank", "ranking")
SCORES = ("scores", "score", "overall_score", "rewards", "reward", "ratings", "rating")
TEXTS = ("response", "text", "content", "completion", "answer", "value")


class RankedResponses(RowFormat):
    """Reader of lists of responses."""

    name = "ranked_responses"
    fields = ("prompt", *LISTS, "ranks", "scores", "system")
    has_rankings = True

    def matches(self, values: Values) -> bool:
        """Return whether a row has a prompt and a list of responses with ranks or scores."""
        found = _list_name(values)
        if found is None or not any(values.get(name) is not None for name in QUESTIONS):
            return False
        inside = [item for item in values[found] if isinstance(item, Mapping)]
        holders = [values, *inside[:1]]
        return any(holder.get(name) is not None for holder in holders for name in (*RANKS, *SCORES))

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the prompt with the first of its best responses."""
        [ranking] = self.read_rankings(values, options)
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        return [Dialogue((*ranking.prompt, Message("assistant", best)))]

    def read_rankings(self, values: Values, options: RowOptions) -> list[Ranking]:
        """Return the ranking of a row; responses without a rank are left out."""
        asked = next((name for name in QUESTIONS if values.get(name) is not None), QUESTIONS[0])
        prompt = parse_side(values, asked, "user", options)
        if not prompt or prompt[0].role != "system":
            prompt = (*system_message(values), *prompt)
        field = _list_name(values) or LISTS[0]
        items = values.get(field)
        if not isinstance(items, list) or not items:
            raise RowError(UNREADABLE, field, "expected a list of responses")
        texts = [_text(item, f"{field}[{at}]") for at, item in enumerate(items)]
        orders = _orders(values, items, field)
        ranked = [
            (text, order) for text, order in zip(texts, orders, strict=True) if order is not None
        ]
        if not ranked:
            raise RowError(UNREADABLE, field, "no response has a rank or a score")
        levels = sorted({order for _, order in ranked})
        ranks = tuple(levels.index(order) for _, order in ranked)
        responses = tuple(text for text, _ in ranked)
        return [Ranking(prompt, responses, ranks, unranked=len(texts) - len(ranked))]


def _list_name(values: Values) -> str | None:
    return next((name for name in LISTS if isinstance(values.get(name), list)), None)


def _text(item: Any, field: str) -> str:
    if not isinstance(item, Mapping):
        return parse_text(item, field)
    name = next((name for name in TEXTS if item.get(name) is not None), TEXTS[0])
    return parse_text(item.get(name), f"{field}.{name}")


def _orders(values: Values, items: Sequence[Any], field: str) -> list[float | None]:
    """Return a number per response, lower is better; None where the row gives none.

    Raises:
        RowError: there are more or fewer numbers than responses, or one is not a number.
    """
    for name, sign in (*((name, 1.0) for name in RANKS), *((name, -1.0) for name in SCORES)):
        given, where = values.get(name), name
        if given is None and any(isinstance(i, Mapping) and i.get(name) is not None for i in items):
            given = [i.get(name) if isinstance(i, Mapping) else None for i in items]
            where = f"{field}.{name}"
        if given is None:
            continue
        if not isinstance(given, list) or len(given) != len(items):
            raise RowError(UNREADABLE, where, f"expected a list of {len(items)} numbers")
        return [_signed(value, sign, f"{where}[{at}]") for at, value in enumerate(given)]
    raise RowError(UNREADABLE, field, "neither ranks nor scores are given")


def _signed(value: Any, sign: float, field: str) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= LARGEST:
        raise RowError(UNREADABLE, field, "expected a number")
    return sign * float(value)
