"""Stages by name: `uses: a.b` is the stage `a.b` in the module `a` of a package of stages."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import NotFound, did_you_mean
from pipeline.naming import NAME
from pipeline.plugins import import_extension, import_stage_packages, stage_packages
from pipeline.stage import Stage


def find_stage(uses: str) -> Stage:
    """Return the stage of that name.

    Raises:
        NotFound: no package has it; the message names the nearest one.
        UserError: its module cannot be imported.
    """
    if uses not in Stage.registry and NAME.fullmatch(uses):
        for package in stage_packages():
            import_extension(f"{package}.{uses.split('.', 1)[0]}")
    if uses in Stage.registry:
        return Stage.registry[uses]
    known = [stage.uses for stage in all_stages()]
    raise NotFound(f"unknown stage {uses!r}", remedy=did_you_mean(uses, known))


def all_stages() -> Iterable[Stage]:
    """Import every stage module and return all stages, sorted by name."""
    import_stage_packages(modules=True)
    return [Stage.registry[uses] for uses in sorted(Stage.registry)]
