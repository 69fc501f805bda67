"""Preferences over answers about the running Python installation: -> Preferences.

    preferences: {uses: python_preferences, max_objects: 8000}

For the objects that `questions` asks about: the true summary is better than a sibling's, which is
better than an unrelated one, which is better than the true one's words in a wrong order. Objects
are split as `questions` splits them, and every answer comes from the prompt's own split.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import panels
from pipeline.errors import InputError
from pipeline.stage import Inputs, stage
from stages.text.cleaning_params import PythonDocsParams

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.preference_dataset import Preference


@stage("python_preferences", output="Preferences", version=2)
def python_preferences(params: PythonDocsParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build K-wise preferences from the docstrings of the Python installation."""
    from stages.data.preference_dataset import write_preferences
    from stages.text.python_docs.preference_pairs import build_preferences
    from stages.text.python_docs.question_answers import collect_summaries

    summaries = collect_summaries(params, ctx)
    found = list(build_preferences(summaries))
    if not found:
        raise InputError(
            f"{len(summaries)} objects are too few to compare",
            where="max_objects",
            remedy="raise max_objects, or allow longer answers",
        )
    write_preferences(out, found)
    _report(found, ctx)


def _report(found: list[Preference], ctx: Context) -> None:
    splits = Counter(preference.split for preference in found)
    widths = Counter(len(preference.ranks) for preference in found)
    pairs = sum(k * (k - 1) // 2 * count for k, count in widths.items())
    ctx.result(preferences=len(found), pairs=pairs, **dict(splits))
    ctx.panel(
        panels.bars(
            "Answers to a prompt", {f"K = {k}": widths[k] for k in sorted(widths)}, unit="prompts"
        )
    )
    ctx.panel(panels.samples("Answers from best to worst", [_shown(p) for p in found[:6]]))


def _shown(preference: Preference) -> dict[str, str]:
    rank_by_preference = sorted(zip(preference.ranks, preference.responses, strict=True))
    answers = {f"rank {rank}": response for rank, response in rank_by_preference}
    return {"prompt": preference.prompt[-1].content, **answers}
