"""Kinds of artifacts: the types of a pipeline's edges.

A plugin or a package of stages registers its kinds when it is imported, or in the module of the
stage that produces them:

    register_kind(Kind("Documents", reader="stages.data.documents:Documents"))
    register_kind(Kind("Model", promotable=True))
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import NotFound, did_you_mean
from pipeline.plugins import import_stage_packages, load_plugins

KINDS: dict[str, Kind] = {}
"""Every kind that is registered so far, by name."""


@dataclass(frozen=True)
class Kind:
    """A kind of artifact."""

    name: str
    promotable: bool = False
    """True if such an artifact can become a version of a registered model."""
    reader: str = ""
    """`module:attribute` of what opens such an artifact's folder, as text, so that naming it
    imports nothing."""
    headline_metrics: tuple[str, ...] = ()
    """Metrics of such artifacts that displays show first, most important first."""


def register_kind(kind: Kind) -> Kind:
    """Add a kind and return it. Adding an equal one again has no effect.

    Raises:
        TypeError: the name is registered with other properties.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise TypeError(f"the kind {kind.name} is registered already, as {KINDS[kind.name]}")
    return kind


def find_kind(name: str, *, import_stages: bool = True) -> Kind:
    """Return the kind of that name.

    Args:
        import_stages: search the stage modules as well as the plugins and packages. False while a
            stage module is being imported.

    Raises:
        NotFound: the kind is not registered; the message names the nearest one.
    """
    if name not in KINDS:
        load_plugins()
        import_stage_packages()
    if name not in KINDS and import_stages:
        import_stage_packages(modules=True)
    if name not in KINDS:
        raise NotFound(f"unknown kind of artifact {name!r}", remedy=did_you_mean(name, KINDS))
    return KINDS[name]


def is_promotable(name: str) -> bool:
    """Return whether artifacts of that kind can be registered as models; unknown ones cannot."""
    try:
        return find_kind(name).promotable
    except NotFound:
        return False


def headline_metrics(name: str) -> tuple[str, ...]:
    """Return the headline metrics of that kind; an unknown kind has none."""
    try:
        return find_kind(name).headline_metrics
    except NotFound:
        return ()
