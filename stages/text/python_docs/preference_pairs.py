"""Ranked answers about documented objects, for training a reward model.

    0  the summary of the object itself
    1  the summary of a sibling (another object of the same class or module)
    2  the summary of an unrelated object (of another top-level module)
    3  the words of its own summary in a wrong order

All answers come from objects of the same split, and the number is the rank that is stored: an
object without siblings has three answers, of ranks 0, 2 and 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from stages.data.hashing import hash64
from stages.data.preference_dataset import SPLITS, Preference
from stages.text.python_docs.question_answers import ObjectSummary, pick_by_key

MIN_WORDS = 4
_ATTEMPTS = 16


def build_preferences(summaries: Sequence[ObjectSummary]) -> Iterator[Preference]:
    """Yield a preference for each object of a labelled split, in order, except for objects with
    too short a summary."""
    for split in SPLITS:
        members = [summary for summary in summaries if summary.split == split]
        siblings = defaultdict(list)
        for summary in members:
            siblings[summary.parent].append(summary)
        for summary in members:
            answers = list(_ranked_answers(summary, siblings[summary.parent], members))
            if len(summary.sentence.split()) >= MIN_WORDS and len(answers) > 2:
                # Answers are stored in an order that reveals nothing about their ranks.
                place = {rank: hash64(f"place {rank} {summary.name}") for rank, _ in answers}
                stored = sorted(answers, key=lambda answer: place[answer[0]])
                yield Preference(
                    id=summary.name,
                    prompt=summary.question,
                    responses=tuple(text for _, text in stored),
                    ranks=tuple(rank for rank, _ in stored),
                    split=split,
                )


def _ranked_answers(
    summary: ObjectSummary, siblings: Sequence[ObjectSummary], members: Sequence[ObjectSummary]
) -> Iterator[tuple[int, str]]:
    """Yield ranks and answers, from best to worst."""
    yield 0, summary.sentence
    others = [sibling for sibling in siblings if sibling.name != summary.name]
    if others and summary.parent:
        yield 1, pick_by_key(others, f"sibling {summary.name}").sentence
    for attempt in range(_ATTEMPTS):
        unrelated = pick_by_key(members, f"unrelated {attempt} {summary.name}")
        if unrelated.top != summary.top:
            yield 2, unrelated.sentence
            break
    yield 3, shuffle_words(summary.sentence, summary.name)


def shuffle_words(sentence: str, key: str) -> str:
    """Return the words in another order, determined by the key; never in the original order."""
    words = sentence.split()
    order = sorted(range(len(words)), key=lambda at: hash64(f"{key} {at}"))
    if [words[at] for at in order] == words:
        order = [*order[1:], order[0]]
    return " ".join(words[at] for at in order)
