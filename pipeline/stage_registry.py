"""Finding stages by name: modules of the packages under the entry-point group `headwater.stages`."""

from __future__ import annotations

import importlib
import os
import pkgutil
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from pipeline.errors import NotFound, UserError, did_you_mean
from pipeline.naming import NAME
from pipeline.stage import Stage

ENTRY_POINT_GROUP = "headwater.stages"


def find_stage(uses: str) -> Stage:
    """The stage of that name.

    Raises:
        NotFound: no package offers it; the message names the nearest one.
        UserError: its module cannot be imported.
    """
    if uses not in Stage.registry and NAME.fullmatch(uses):
        for package in stage_packages():
            _import(f"{package}.{uses.split('.', 1)[0]}")
    if uses in Stage.registry:
        return Stage.registry[uses]
    known = [known.uses for known in all_stages()]
    raise NotFound(f"unknown stage {uses!r}", remedy=did_you_mean(uses, known))


def _import(module: str) -> ModuleType | None:
    """Import a module that may be absent; whatever is wrong inside it is the user's to mend."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in (module, module.rpartition(".")[0]):
            return None
        raise UserError(
            f"the stage module {module} needs {error.name!r}, which is not installed",
            remedy=f"pip install {error.name}",
        ) from error
    except Exception as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0]
        raise UserError(
            f"the stage module {module} cannot be imported: {type(error).__name__}: {said}",
            where=_place(error, module),
            remedy="mend that line",
        ) from error


def _place(error: Exception, module: str) -> str:
    """`file.py:line` of the module's own last line that led to an error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.endswith(module.replace(".", os.sep) + ".py")]
    last = (own or frames)[-1]
    return f"{last.filename}:{last.lineno}"


def all_stages() -> Iterable[Stage]:
    """Every stage of every package, sorted by name."""
    for package in stage_packages():
        root = _import(package)
        for info in pkgutil.iter_modules(root.__path__ if root else ()):
            if not info.ispkg:
                _import(f"{package}.{info.name}")
    return [Stage.registry[uses] for uses in sorted(Stage.registry)]


@cache
def stage_packages() -> tuple[str, ...]:
    """The packages that may hold stages, in a fixed order, our own first."""
    found = {point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | {"stages"}
    return tuple(sorted(found, key=lambda package: (package != "stages", package)))
