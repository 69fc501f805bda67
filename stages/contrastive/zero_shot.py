"""Zero-shot classification: an image gets the class whose prompts are most similar to it.

A class's prompts are all templates filled with all of its words. Their embeddings, each of norm 1,
are averaged and normalized again (Radford et al. 2021, section 3.1.4): an ensemble costs no more
than one prompt.

The mean embedding of a heterogeneous class (words for 140 animals) is far from all of its prompts.
An ensemble of probabilities takes a softmax over the prompts of all classes instead, and averages
the probabilities of each class's prompts: it costs as much as all prompts do.

    {"templates": ["a photo of {}", "a drawing of {}"],
     "classes": ["cat", {"name": "dog", "words": ["dog", "puppy"]}]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from stages.data.formats.text_encoding import decode_text

EncodeTexts = Callable[[Sequence[str]], Tensor]
"""Texts -> embeddings (texts, E) of norm 1."""

BLOCK_ELEMENTS = 1 << 24
"""Elements in memory of a matrix of images and prompts."""


@dataclass(frozen=True)
class ClassPrompts:
    """Classes with the words and templates of their prompts."""

    names: tuple[str, ...]
    """Names as in the labels."""
    words: tuple[tuple[str, ...], ...]
    """Words per class that fill the templates."""
    templates: tuple[str, ...]

    def prompts(self, templates: Sequence[str]) -> list[list[str]]:
        """Return the prompts of each class."""
        return [[t.replace("{}", w) for t in templates for w in words] for words in self.words]


class ZeroShotResult(NamedTuple):
    """Accuracy of a zero-shot classification."""

    accuracy: float
    per_class: dict[str, float]
    """Accuracy of each class that has images."""

    @property
    def balanced_accuracy(self) -> float:
        """Mean accuracy over classes."""
        return sum(self.per_class.values()) / len(self.per_class)


def read_classes(path: Path, label: str) -> ClassPrompts:
    """Read a file of classes; the key of the list may be `classes` or the name of the label field.

    Raises:
        InputError: the file does not have that format.
    """
    try:
        raw: Any = json.loads(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the classes: {error}", where=str(path)) from error
    remedy = 'write {"templates": ["a photo of {}"], "classes": ["cat", "dog"]}'
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    listed, templates = fields.get("classes", fields.get(label)), fields.get("templates")
    if not _is_texts(templates) or not all("{}" in template for template in templates):
        raise InputError(
            "`templates` is not a list of texts with {}", where=str(path), remedy=remedy
        )
    if not isinstance(listed, list) or len(listed) < 2:
        raise InputError(
            f"neither `classes` nor `{label}` is a list of classes", where=str(path), remedy=remedy
        )
    parsed = [_parse_class(item, path, remedy) for item in listed]
    names = tuple(name for name, _ in parsed)
    if len(set(names)) < len(names):
        raise InputError("a class is listed twice", where=str(path), remedy="list each class once")
    return ClassPrompts(names, tuple(words for _, words in parsed), tuple(templates))


def _parse_class(item: Any, path: Path, remedy: str) -> tuple[str, tuple[str, ...]]:
    if isinstance(item, str):
        return item, (item,)
    fields: dict[str, Any] = item if isinstance(item, dict) else {}
    name = fields.get("name")
    words = fields.get("words", [name])
    if not isinstance(name, str) or not _is_texts(words):
        raise InputError(f"not a class: {str(item)[:80]}", where=str(path), remedy=remedy)
    return name, tuple(words)


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def class_embeddings(prompts: Sequence[Sequence[str]], encode: EncodeTexts) -> Tensor:
    """Return the normalized mean of each class's prompt embeddings, shape (classes, E)."""
    flat_PE = encode([prompt for each in prompts for prompt in each])
    parts = flat_PE.split([len(each) for each in prompts])  # type: ignore[no-untyped-call]
    return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=1)


def prompt_probabilities(
    image_NE: Tensor, prompts: Sequence[Sequence[str]], encode: EncodeTexts, scale: float
) -> Tensor:
    """Return the mean probability of each class's prompts among all prompts, (images, classes)."""
    flat_PE = encode([prompt for each in prompts for prompt in each])
    counts_C = torch.tensor([len(each) for each in prompts], device=flat_PE.device)
    class_P = torch.arange(len(prompts), device=flat_PE.device).repeat_interleave(counts_C)
    parts = []
    for part_NE in image_NE.split(max(1, BLOCK_ELEMENTS // len(flat_PE))):  # type: ignore[no-untyped-call]
        probability_NP = (scale * (part_NE @ flat_PE.T)).softmax(1)
        sums_NC = probability_NP.new_zeros(len(part_NE), len(prompts))
        parts.append(sums_NC.index_add_(1, class_P, probability_NP) / counts_C)
    return torch.cat(parts)


def classification_accuracy(
    scores_NC: Tensor, labels: Sequence[str], names: Sequence[str]
) -> ZeroShotResult:
    """Return the accuracy of predicting the class with the highest score.

    Raises:
        InputError: a label is not a class.
    """
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(number)):
        raise InputError(
            f"{len(unknown)} labels are not classes: {', '.join(unknown[:3])}",
            where="classes",
            remedy="list every label under `classes`",
        )
    label_N = torch.tensor([number[label] for label in labels])
    correct_N = (scores_NC.argmax(1).cpu() == label_N).double()
    present = torch.unique(label_N).tolist()
    by_class = {names[c]: correct_N[label_N == c].mean().item() for c in present}
    return ZeroShotResult(correct_N.mean().item(), by_class)


def evaluate_zero_shot(
    image_NE: Tensor,
    labels: Sequence[str],
    classes: ClassPrompts,
    encode: EncodeTexts,
    *,
    scale: float | None = None,
) -> tuple[ZeroShotResult, Mapping[str, ZeroShotResult]]:
    """Evaluate the ensemble of all prompts, and each template with the first word of each class.

    Args:
        image_NE: embeddings of norm 1.
        labels: class of each image.
        classes: classes and their prompts.
        encode: returns the embeddings of texts.
        scale: the model's logit scale for an ensemble of probabilities; None averages embeddings.

    Returns:
        The result of the ensemble, and that of each template.
    """

    def similarities(prompts: Sequence[Sequence[str]]) -> Tensor:
        return image_NE @ class_embeddings(prompts, encode).T

    def result(scores_NC: Tensor) -> ZeroShotResult:
        return classification_accuracy(scores_NC, labels, classes.names)

    single = {
        template: result(
            similarities([[template.replace("{}", words[0])] for words in classes.words])
        )
        for template in classes.templates
    }
    prompts = classes.prompts(classes.templates)
    if scale is None:
        return result(similarities(prompts)), single
    return result(prompt_probabilities(image_NE, prompts, encode, scale)), single
