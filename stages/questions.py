"""Questions and answers about the running Python installation: -> Conversations.

    questions: {uses: questions, max_objects: 8000}

Each public module, class, function and method with a docstring gives one: "What does
`pathlib.Path.glob` do?", answered by the first sentence of the docstring. Three tenths of the
objects are `unlabelled`: their answers stand without a question, for a speaker to ask. A tenth is
held out as `eval`. The user's message of a `train` row is also a prompt for reinforcement
learning (`Conversation.prompt`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import Problem
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.conversations import Conversation
    from stages.text.objects import Fact

OBJECTS_A_SECOND = 600  # found on one busy core


class QuestionsParams(Params):
    """How many objects are asked about, and how long an answer may be."""

    sources: tuple[Literal["python:docs"], ...] = ("python:docs",)
    """Where objects come from: the running Python installation."""
    max_objects: PositiveInt = 8_000
    """Objects in all splits together, at most; the standard library's come first."""
    min_characters: Annotated[int, Field(ge=1)] = 20
    """Characters of an answer, at least."""
    max_characters: PositiveInt = 300
    """Characters of an answer, at most."""

    def externals(self) -> dict[str, str]:
        """The documentation of the installation."""
        from stages.text.sources import PYTHON_DOCS, content_digest

        return {PYTHON_DOCS: content_digest(PYTHON_DOCS)}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """The lengths are in order."""
        if self.min_characters > self.max_characters:
            yield Problem("min_characters", "more than max_characters", "swap them")

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Reading takes the time."""
        return {"seconds": 2 + self.max_objects / OBJECTS_A_SECOND / self.workers.num}


@stage("questions", output="Conversations", version=1)
def questions(params: QuestionsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build questions and answers from the docstrings of the Python installation."""
    from stages.data.conversations import write_conversations
    from stages.text.objects import collect_facts

    facts = collect_facts(
        ctx,
        params.workers,
        most=params.max_objects,
        shortest=params.min_characters,
        longest=params.max_characters,
    )
    write_conversations(out, map(_conversation, facts))
    _report(facts, ctx)


def _conversation(fact: Fact) -> Conversation:
    from stages.data.conversations import Conversation, Message

    asked = () if fact.split == "unlabelled" else fact.question
    return Conversation(
        id=fact.name,
        messages=(*asked, Message("assistant", fact.summary)),
        split=fact.split,
        meta={"kind": fact.kind},
    )


def _report(facts: list[Fact], ctx: Context) -> None:
    splits, kinds = Counter(fact.split for fact in facts), Counter(fact.kind for fact in facts)
    packages = Counter(fact.top for fact in facts).most_common(20)
    ctx.result(conversations=len(facts), **dict(splits))
    ctx.panel(panels.bars("Objects asked about", dict(kinds.most_common()), unit="objects"))
    ctx.panel(panels.table("Largest packages", ("package", "objects"), packages))
    shown = [fact for fact in facts if fact.split == "train"][:8]
    items = [{"question": f.question[0].content, "answer": f.summary} for f in shown]
    ctx.panel(panels.samples("Questions and answers", items))
