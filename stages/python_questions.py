"""Questions and answers about the running Python installation: -> Conversations.

    questions: {uses: python_questions, max_objects: 8000}

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
from stages.text.cleaning_params import PythonDocsParams

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.conversation_dataset import Conversation
    from stages.text.python_docs.question_answers import ObjectSummary


@stage("python_questions", output="Conversations", version=2)
def python_questions(params: PythonDocsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build questions and answers from the docstrings of the Python installation."""
    from stages.data.conversation_dataset import write_conversations
    from stages.text.python_docs.question_answers import collect_summaries

    summaries = collect_summaries(params, ctx)
    write_conversations(out, map(_conversation, summaries))
    _report(summaries, ctx)


def _conversation(entry: ObjectSummary) -> Conversation:
    from stages.data.conversation_dataset import Conversation, Message

    asked = () if entry.split == "unlabelled" else entry.question
    return Conversation(
        id=entry.name,
        messages=(*asked, Message("assistant", entry.sentence)),
        split=entry.split,
        meta={"kind": entry.kind},
    )


def _report(summaries: list[ObjectSummary], ctx: Context) -> None:
    splits, kinds = (
        Counter(entry.split for entry in summaries),
        Counter(entry.kind for entry in summaries),
    )
    packages = Counter(entry.top for entry in summaries).most_common(20)
    ctx.result(conversations=len(summaries), **dict(splits))
    ctx.panel(panels.bars("Objects asked about", dict(kinds.most_common()), unit="objects"))
    ctx.panel(panels.table("Largest packages", ("package", "objects"), packages))
    shown = [entry for entry in summaries if entry.split == "train"][:8]
    items = [{"question": f.question[0].content, "answer": f.sentence} for f in shown]
    ctx.panel(panels.samples("Questions and answers", items))
