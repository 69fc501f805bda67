"""Preferences over answers about the running Python installation: -> Preferences.

    preferences: {uses: python_preferences, max_objects: 8000}

For the objects of `python_questions`, four answers are ranked: the true summary, a sibling's, an
unrelated one, and the words of the true one in a wrong order. Objects are split as in
`python_questions`, and every answer comes from the split of its prompt.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.errors import InputError
from pipeline.stage import Inputs, stage
from stages.text.python_docs.python_docs_params import PythonDocsParams

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.preference_dataset import Preference


@stage(
    "python_preferences",
    output="Preferences",
    version=4,
    metrics={
        "preferences": "prompts with ranked answers",
        "pairs": "pairs of answers",
        "train": "prompts of the training split",
        "eval": "held-out prompts",
        "unlabelled": "prompts of the unlabelled split",
    },
)
def python_preferences(params: PythonDocsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build K-wise preferences from the docstrings of the Python installation."""
    from stages.data.preference_dataset import write_preferences
    from stages.text.python_docs.preference_pairs import build_preferences
    from stages.text.python_docs.question_answers import collect_summaries

    summaries = collect_summaries(params, ctx)
    preferences = list(build_preferences(summaries))
    if not preferences:
        raise InputError(
            f"{len(summaries)} objects are too few to compare",
            where="max_objects",
            remedy="raise max_objects, or allow longer answers",
        )
    write_preferences(out, preferences)
    _report(preferences, ctx)


def _report(preferences: list[Preference], ctx: Context) -> None:
    splits = Counter(preference.split for preference in preferences)
    sizes = Counter(len(preference.ranks) for preference in preferences)
    pairs = sum(k * (k - 1) // 2 * count for k, count in sizes.items())
    ctx.result(preferences=len(preferences), pairs=pairs, **dict(splits))
    answers = {f"K = {k}": sizes[k] for k in sorted(sizes)}
    ctx.panel(panels.bars("Answers per prompt", answers, unit="prompts"))
    shown = []
    for preference in preferences[:6]:
        ranked = sorted(zip(preference.ranks, preference.responses, strict=True))
        responses = {f"rank {rank}": response for rank, response in ranked}
        shown.append({"prompt": preference.prompt[-1].content, **responses})
    ctx.panel(panels.samples("Answers from best to worst", shown))
