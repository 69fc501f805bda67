"""Questions and answers about the running Python installation: -> Conversations.

    questions: {uses: questions, max_objects: 8000}

Each public module, class, function and method with a docstring gives one: "What does
`pathlib.Path.glob` do?", answered by the first sentence of the docstring. Three tenths of the
objects are `unlabelled`: their answers stand without a question, for a speaker to ask. A tenth is
held out as `eval`; `clean` leaves their docstrings out of `python:docs`. The user's message of a
`train` row is also a prompt for reinforcement learning (`Conversation.prompt`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.stage import Inputs, stage
from stages.text.cleaning_params import ObjectsParams

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.conversation_dataset import Conversation
    from stages.text.python_docs.question_answers import Fact


@stage("questions", output="Conversations", version=2)
def questions(params: ObjectsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build questions and answers from the docstrings of the Python installation."""
    from stages.data.conversation_dataset import write_conversations
    from stages.text.python_docs.question_answers import collect_facts

    facts = collect_facts(params, ctx)
    write_conversations(out, map(_conversation, facts))
    _report(facts, ctx)


def _conversation(fact: Fact) -> Conversation:
    from stages.data.conversation_dataset import Conversation, Message

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
