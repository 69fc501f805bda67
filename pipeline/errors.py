"""Every error that a user can meet, with its exit code.

    HeadwaterError
    ├── UserError                 2    the input is wrong; nothing was started or lost
    │   ├── SpecError             2    the pipeline file, with every problem found in it
    │   ├── InputError            2    a stage cannot use its input
    │   ├── NotCanonical          2    a value that cannot be part of a fingerprint
    │   └── NotFound              2    no such run, artifact, model or stage
    ├── Failure                   1    the work failed
    │   ├── CorruptArtifact       1    bytes on disk differ from the published ones
    │   ├── LeaseLost             1    another run holds the lease; this one must not commit
    │   ├── WorkerDied            1    a process of a stage's group vanished (retried)
    │   ├── ResourcesUnavailable  1    the cluster is fully used at the moment (retried forever)
    │   └── StageStalled          1    no progress for too long (retried)
    ├── GateRefused               3    a promotion gate did not pass
    └── Interrupted             130    stopped on request; `resume` continues

Each error names what is wrong, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class HeadwaterError(Exception):
    """A message, its place (file:line, key, stage), and the remedy."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)  # the attributes below are pickled with the error
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UserError(HeadwaterError):
    """The user's input is wrong."""

    exit_code = 2


class InputError(UserError):
    """A stage cannot use its input."""


class NotCanonical(UserError):
    """A value without a unique byte representation, which cannot identify anything."""


class NotFound(UserError):
    """Nothing with that name exists."""


class Failure(HeadwaterError):
    """The work failed although the input is right."""


class CorruptArtifact(Failure):
    """Bytes on disk differ from the published ones."""


class LeaseLost(Failure):
    """Another run holds the lease."""


class WorkerDied(Failure):
    """A process of a stage's group vanished."""


class ResourcesUnavailable(Failure):
    """The cluster is fully used by others at the moment."""


class StageStalled(Failure):
    """A stage made no progress for too long."""


class GateRefused(HeadwaterError):
    """A promotion gate did not pass."""

    exit_code = 3


class Interrupted(HeadwaterError):
    """The work stopped on request and can be resumed."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One problem in a pipeline file: the key path, the message, the remedy."""

    key: str
    message: str
    remedy: str = ""
    where: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.key) if part)
        hint = f" ({self.remedy})" if self.remedy else ""
        return f"{place}: {self.message}{hint}" if place else f"{self.message}{hint}"


class SpecError(UserError):
    """A pipeline file with all its problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a remedy for a word that is not `known`: the nearest one, or all of them."""
    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(words)}" if words else "no name is known"
