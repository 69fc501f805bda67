"""Answers that are worse in known ways: what a reward model learns to tell apart.

    0  the object's own summary
    1  the summary of a sibling (another object of the same class or module)
    2  the summary of an unrelated object (of another top-level module)
    3  the words of the own summary in a wrong order

All come from objects of the same split, and the number is the rank that is stored: an object
without siblings has three answers, of ranks 0, 2 and 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from stages.data.hashing import hash64
from stages.data.preference_dataset import SPLITS, Preference
from stages.text.python_docs.question_answers import Fact, pick

FEWEST_WORDS = 4
_TRIES = 16


def contrasts(facts: Sequence[Fact]) -> Iterator[Preference]:
    """A preference for each fact of a labelled split, in order; too short ones are left out."""
    for split in SPLITS:
        members = [fact for fact in facts if fact.split == split]
        siblings = defaultdict(list)
        for fact in members:
            siblings[fact.parent].append(fact)
        for fact in members:
            answers = list(_answers(fact, siblings[fact.parent], members))
            if len(fact.summary.split()) >= FEWEST_WORDS and len(answers) > 2:
                yield _preference(fact, answers, split)


def _answers(
    fact: Fact, siblings: Sequence[Fact], members: Sequence[Fact]
) -> Iterator[tuple[int, str]]:
    """Ranks and answers, from best to worst."""
    yield 0, fact.summary
    others = [sibling for sibling in siblings if sibling.name != fact.name]
    if others and fact.parent:
        yield 1, pick(others, f"sibling {fact.name}").summary
    for attempt in range(_TRIES):
        unrelated = pick(members, f"unrelated {attempt} {fact.name}")
        if unrelated.top != fact.top:
            yield 2, unrelated.summary
            break
    yield 3, shuffled(fact.summary, fact.name)


def shuffled(sentence: str, key: str) -> str:
    """The words in another order, decided by the key; never the order they came in."""
    words = sentence.split()
    order = sorted(range(len(words)), key=lambda at: hash64(f"{key} {at}"))
    if [words[at] for at in order] == words:
        order = [*order[1:], order[0]]
    return " ".join(words[at] for at in order)


def _preference(fact: Fact, answers: list[tuple[int, str]], split: str) -> Preference:
    """Answers are stored in an order that says nothing of their ranks."""
    stored = sorted(answers, key=lambda answer: hash64(f"place {answer[0]} {fact.name}"))
    return Preference(
        id=fact.name,
        prompt=fact.question,
        responses=tuple(text for _, text in stored),
        ranks=tuple(rank for rank, _ in stored),
        split=split,
    )
