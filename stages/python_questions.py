"""Questions and answers about the running Python installation: -> Conversations.

    questions: {uses: python_questions, max_objects: 8000}

Each public module, class, function and method with a docstring gives one conversation: "What does
`pathlib.Path.glob` do?", answered by the first sentence of the docstring. Of the objects, 30 % are
`unlabelled`: their answers have no question, which a speaker model generates. A tenth is held out
as `eval`; `clean` leaves the docstrings of these objects out of `python:docs`. The user message of
a `train` row is also a prompt for reinforcement learning (`Conversation.prompt`).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.stage import Inputs, stage
from stages.text.python_docs.python_docs_params import PythonDocsParams

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.text.python_docs.question_answers import ObjectSummary


@stage(
    "python_questions",
    output="Conversations",
    version=4,
    metrics={
        "conversations": "questions with answers",
        "train": "conversations of the training split",
        "eval": "held-out conversations",
        "unlabelled": "answers of the unlabelled split",
    },
)
def python_questions(params: PythonDocsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build questions and answers from the docstrings of the Python installation."""
    from stages.data.conversation_dataset import Conversation, Message, write_conversations
    from stages.text.python_docs.question_answers import collect_summaries

    summaries = collect_summaries(params, ctx)
    conversations = (
        Conversation(
            id=summary.name,
            messages=(
                *(() if summary.split == "unlabelled" else summary.question),
                Message("assistant", summary.sentence),
            ),
            split=summary.split,
            meta={"kind": summary.kind},
        )
        for summary in summaries
    )
    write_conversations(out, conversations)
    _report(summaries, ctx)


def _report(summaries: list[ObjectSummary], ctx: Context) -> None:
    splits = Counter(summary.split for summary in summaries)
    kinds = Counter(summary.kind for summary in summaries)
    packages = Counter(summary.top for summary in summaries).most_common(20)
    ctx.result(conversations=len(summaries), **dict(splits))
    ctx.panel(panels.bars("Objects", dict(kinds.most_common()), unit="objects"))
    ctx.panel(panels.table("Largest packages", ("package", "objects"), packages))
    shown = [summary for summary in summaries if summary.split == "train"][:8]
    items = [{"question": s.question[0].content, "answer": s.sentence} for s in shown]
    ctx.panel(panels.samples("Questions and answers", items))
