"""Parameters of the stages that read the documentation of the Python installation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.errors import Problem
from pipeline.stage import Params

OBJECTS_PER_SECOND = 600  # read on one busy core


class PythonDocsParams(Params):
    """Selection of documented objects. Stages with equal parameters use the same objects, in the
    same splits."""

    renamed: ClassVar[Mapping[str, str]] = {
        "min_characters": "min_answer_characters",
        "max_characters": "max_answer_characters",
    }

    sources: tuple[Literal["python:docs"], ...] = ("python:docs",)
    """Origin of the objects: the running Python installation."""
    max_objects: PositiveInt = 8_000
    """Maximum number of objects in all splits together, the standard library first. Default:
    8,000."""
    min_answer_characters: Annotated[int, Field(ge=1)] = 20
    """Minimum length of an answer, characters. Default: 20."""
    max_answer_characters: PositiveInt = 300
    """Maximum length of an answer, characters. Default: 300."""

    def externals(self) -> dict[str, str]:
        """Return the digest of the installation's documentation."""
        from stages.text.python_docs.installed_files import installation_digest

        return {"python:docs": installation_digest()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Check that the lengths are in order."""
        if self.min_answer_characters > self.max_answer_characters:
            yield Problem(
                "min_answer_characters", "more than max_answer_characters", "swap the values"
            )

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Estimate the seconds, spent mostly on reading modules."""
        return {"seconds": 2 + self.max_objects / OBJECTS_PER_SECOND / self.workers.num}
