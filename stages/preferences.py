"""Preferences over answers about the running Python installation: -> Preferences.

    preferences: {uses: preferences, max_objects: 8000}

For the objects that `questions` asks about: the true summary is better than a sibling's, which is
better than an unrelated one, which is better than the true one's words in a wrong order. Objects
are split as `questions` splits them, and every answer comes from the prompt's own split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.preferences import Preference

OBJECTS_A_SECOND = 600  # found on one busy core


class PreferencesParams(Params):
    """How many objects there are answers about, and how long an answer may be."""

    sources: tuple[Literal["python:docs"], ...] = ("python:docs",)
    """Where objects come from: the running Python installation."""
    max_objects: PositiveInt = 8_000
    """Objects in all splits together, at most; the same as in `questions` gives the same ones."""
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


@stage("preferences", output="Preferences", version=1)
def preferences(params: PreferencesParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Build K-wise preferences from the docstrings of the Python installation."""
    from stages.data.preferences import write_preferences
    from stages.text.contrasts import contrasts
    from stages.text.objects import collect_facts

    facts = collect_facts(
        ctx,
        params.workers,
        most=params.max_objects,
        shortest=params.min_characters,
        longest=params.max_characters,
    )
    found = list(contrasts(facts))
    if not found:
        raise InputError(
            f"{len(facts)} objects are too few to compare",
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
    ranked = sorted(zip(preference.ranks, preference.responses, strict=True))
    answers = {f"rank {rank}": response for rank, response in ranked}
    return {"prompt": preference.prompt[-1].content, **answers}
