"""The `model:` section of every registered language model, as one type.

Apart from the registry because its value is complete only after all families are registered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.registry import DEFAULT_FAMILY, families, language_model_section

if TYPE_CHECKING:
    from stages.models.model_params import LanguageModelSection

    AnyLanguageModelSection = LanguageModelSection
else:
    AnyLanguageModelSection = language_model_section()


def default_section() -> AnyLanguageModelSection:
    """Return the section of the default family with its default values."""
    return families()[DEFAULT_FAMILY].section()  # type: ignore[return-value]
