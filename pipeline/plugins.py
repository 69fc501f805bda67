"""Modules by which packages extend this one, found by their entry points.

    [project.entry-points."headwater.plugins"]
    lion = "mypackage.lion"            # a model family, an optimizer, an objective, a kind

    [project.entry-points."headwater.stages"]
    mine = "mypackage.stages"          # `uses: mix` is searched in mypackage/stages/mix.py

A plugin registers what it adds when it is imported, without torch, because `headwater plan` imports
it. A registry calls `load_plugins` before it is read, never while the module that defines its
registering function is being imported.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import traceback
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType

from pipeline.errors import UserError


@cache
def load_plugins() -> tuple[str, ...]:
    """Import each module of the group `headwater.plugins` once, sorted by name.

    Returns:
        The names of the modules.

    Raises:
        UserError: a module cannot be imported.
    """
    modules = tuple(sorted({point.value for point in entry_points(group="headwater.plugins")}))
    for module in modules:
        if import_extension(module, "plugin") is None:
            raise UserError(f"the plugin {module} does not exist", remedy="uninstall its package")
    return modules


@cache
def stage_packages() -> tuple[str, ...]:
    """Return the packages of the group `headwater.stages`: `stages` first, the others sorted."""
    found = {point.value for point in entry_points(group="headwater.stages")} - {"stages"}
    return ("stages", *sorted(found))


def import_stage_packages(*, modules: bool = False) -> None:
    """Import every package of stages, and with `modules` every stage module in it.

    Raises:
        UserError: a module cannot be imported.
    """
    for package in stage_packages():
        root = import_extension(package)
        for info in pkgutil.iter_modules(root.__path__ if root and modules else ()):
            if not info.ispkg:
                import_extension(f"{package}.{info.name}")


def import_extension(module: str, noun: str = "stage module") -> ModuleType | None:
    """Import a module of a package; return None if there is no such module.

    Raises:
        UserError: the module exists but cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name in (module, module.rpartition(".")[0]):
            return None
        raise UserError(
            f"the {noun} {module} needs {error.name!r}, which is not installed",
            remedy=f"pip install {error.name}",
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename.endswith(module.replace(".", os.sep) + ".py")]
        last = (own or frames)[-1]
        where, reason = f"{last.filename}:{last.lineno}", str(error).partition("\n")[0]
        if isinstance(error, SyntaxError):
            where, reason = f"{error.filename}:{error.lineno}", error.msg
        raise UserError(
            f"the {noun} {module} cannot be imported: {type(error).__name__}: {reason}",
            where=where,
            remedy="repair that line, or uninstall the package",
        ) from error
