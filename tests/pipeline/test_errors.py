"""Every error has a message, a place, a remedy and an exit code, and can be pickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from pipeline import errors
from pipeline.errors import HeadwaterError, InputError, Problem, SpecError, did_you_mean


def kinds(root: type[HeadwaterError] = HeadwaterError) -> Iterator[type[HeadwaterError]]:
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


def drawn() -> dict[str, int]:
    """Exit codes by name, as the module's docstring draws them."""
    lines = re.findall(r"[├└]── (\w+) +(\d+)  ", errors.__doc__ or "")
    return {name: int(code) for name, code in lines}


def test_the_tree_is_drawn_as_it_is() -> None:
    codes = {kind.__name__: kind.exit_code for kind in kinds()}
    del codes["HeadwaterError"]
    assert drawn() == codes


def test_an_error_shows_its_place() -> None:
    assert str(InputError("no file", where="clean", remedy="give one")) == "clean: no file"
    assert str(InputError("no such file")) == "no such file"


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind is not SpecError])
def test_errors_cross_process_borders(kind: type[HeadwaterError]) -> None:
    error = kind("what", where="where", remedy="next")
    error.extra = [1]  # type: ignore[attr-defined]
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)
    assert copied.args == ("what",)


def test_a_spec_error_carries_every_problem() -> None:
    problems = [
        Problem("gpt.lr", "too high", "lower it", "f:3"),
        Problem("gpt.lr", "too high"),
        Problem("", "too high", where="f:3"),
        Problem("", "too high", "lower it"),
    ]
    error = SpecError(problems)
    assert str(error).splitlines() == [
        "f:3: gpt.lr: too high (lower it)",
        "gpt.lr: too high",
        "f:3: too high",
        "too high (lower it)",
    ]
    copied = pickle.loads(pickle.dumps(error))
    assert copied.problems == problems
    assert str(copied) == str(error)


def test_the_nearest_word_is_suggested() -> None:
    assert did_you_mean("cleen", ["tokens", "clean"]) == "did you mean 'clean'?"
    assert did_you_mean("zzz", {"tokens": 1, "clean": 2}) == "known: clean, tokens"
    assert did_you_mean("zzz", []) == "no name is known"
