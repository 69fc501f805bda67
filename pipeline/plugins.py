"""Loads the modules by which other packages extend this one.

    [project.entry-points."headwater.plugins"]
    lion = "mypackage.lion"

Such a module registers a model family, an optimizer, an objective or an artifact kind when it is
imported, without torch, because `headwater plan` imports it. A registry calls `load_plugins` before
it is read, never while the module that defines its `register` function is being imported.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points

from pipeline.errors import UserError

ENTRY_POINT_GROUP = "headwater.plugins"


@cache
def load_plugins() -> tuple[str, ...]:
    """Import each module of the entry-point group once, sorted by name.

    Returns:
        The names of the modules.

    Raises:
        UserError: a module cannot be imported.
    """
    modules = tuple(sorted({point.value for point in entry_points(group=ENTRY_POINT_GROUP)}))
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"plugin {module} cannot be imported: {type(error).__name__}: {error}",
                remedy="repair it, or uninstall the package that names it",
            ) from error
    return modules
