"""Answers that are worse in known ways: what a reward model learns to tell apart.

    0  the object's own summary
    1  the summary of a sibling (another object of the same class or module)
    2  the summary of an unrelated object (of another top-level module)
    3  the words of its own summary in a wrong order

All come from objects of the same split, and the number is the rank that is stored: an object
without siblings has three answers, of ranks 0, 2 and 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from stages.data.hashing import hash64
from stages.data.preference_dataset import SPLITS, Preference
from stages.text.python_docs.question_answers import ObjectSummary, pick_by_key

FEWEST_WORDS = 4
_TRIES = 16


def build_preferences(summaries: Sequence[ObjectSummary]) -> Iterator[Preference]:
    """A preference for each fact of a labelled split, in order; too short ones are left out."""
    for split in SPLITS:
        members = [entry for entry in summaries if entry.split == split]
        siblings = defaultdict(list)
        for entry in members:
            siblings[entry.parent].append(entry)
        for entry in members:
            answers = list(_answers(entry, siblings[entry.parent], members))
            if len(entry.sentence.split()) >= FEWEST_WORDS and len(answers) > 2:
                yield _preference(entry, answers, split)


def _answers(
    entry: ObjectSummary, siblings: Sequence[ObjectSummary], members: Sequence[ObjectSummary]
) -> Iterator[tuple[int, str]]:
    """Ranks and answers, from best to worst."""
    yield 0, entry.sentence
    others = [sibling for sibling in siblings if sibling.name != entry.name]
    if others and entry.parent:
        yield 1, pick_by_key(others, f"sibling {entry.name}").sentence
    for attempt in range(_TRIES):
        unrelated = pick_by_key(members, f"unrelated {attempt} {entry.name}")
        if unrelated.top != entry.top:
            yield 2, unrelated.sentence
            break
    yield 3, shuffle_words(entry.sentence, entry.name)


def shuffle_words(sentence: str, key: str) -> str:
    """The words in another order, decided by the key; never the order they came in."""
    words = sentence.split()
    order = sorted(range(len(words)), key=lambda at: hash64(f"{key} {at}"))
    if [words[at] for at in order] == words:
        order = [*order[1:], order[0]]
    return " ".join(words[at] for at in order)


def _preference(entry: ObjectSummary, answers: list[tuple[int, str]], split: str) -> Preference:
    """Answers are stored in an order that says nothing of their ranks."""
    stored = sorted(answers, key=lambda answer: hash64(f"place {answer[0]} {entry.name}"))
    return Preference(
        id=entry.name,
        prompt=entry.question,
        responses=tuple(text for _, text in stored),
        ranks=tuple(rank for rank, _ in stored),
        split=split,
    )
