"""Chat templates, rendered as `transformers` renders them: in its sandbox, with its extensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from stages.data.tokenizers.template_files import TEMPLATES, marks_answers, named_template

__all__ = ["TEMPLATES", "Rendering", "named_template", "render_template"]


@dataclass(frozen=True, slots=True)
class Rendering:
    """The text of a conversation."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()
    """Characters of each {% generation %} block, start and end."""


def render_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    add_generation_prompt: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Rendering:
    """Render messages, as `apply_chat_template` does.

    Raises:
        InputError: the template is broken, or refuses these messages.
    """
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    marked = marks_answers(source)
    try:
        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **(variables or {}),
        )
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InputError(
            f"the chat template cannot render messages of {roles}: {error}",
            remedy="name another chat template, or leave these messages out",
        ) from error
    return Rendering(texts[0], tuple(spans[0]) if marked else ())
