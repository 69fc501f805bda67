"""CLIP: an image tower and a text tower with a joint embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.models.clip.clip_sections import ClipModelSection
from stages.models.registry import Conversion, HFClasses, ModelFamily, register_family

if TYPE_CHECKING:
    from stages.models.clip.configuration_clip import CLIPConfig
    from stages.models.clip.modeling_clip import CLIP


def _build(config: CLIPConfig) -> CLIP:
    from stages.models.clip.modeling_clip import CLIP

    return CLIP(config)


def _conversion() -> Conversion:
    from stages.models.clip.conversion_clip import CLIPConversion

    return CLIPConversion()


def _smoke_test(folder: Path) -> str:
    from stages.models.clip.conversion_clip import smoke_test

    return smoke_test(folder)


register_family(
    ModelFamily(
        "clip",
        frozenset({"contrastive"}),
        section=ClipModelSection,
        build=_build,
        conversion=_conversion,
        hf_types={"clip": HFClasses(base="CLIPModel"), "headwater_clip": HFClasses()},
        smoke_test=_smoke_test,
    )
)
