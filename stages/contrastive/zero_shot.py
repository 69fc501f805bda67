"""Classification by captions: a class is the embedding of what people would write of it.

A class's prompts are all templates filled with all of its names. Their embeddings, each of norm 1,
are averaged and brought to norm 1 again (Radford et al. 2021, section 3.1.4): an ensemble costs no
more than one prompt. An image belongs to the class it is nearest to.

The mean of a class that is many things (words for 140 animals) is near to none of them. An ensemble
of probabilities asks how likely each prompt is among those of all classes, and takes the mean of
each class's: it costs what all prompts cost.

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

Encode = Callable[[Sequence[str]], Tensor]
"""Texts -> embeddings (texts, E) of norm 1."""

BLOCK = 1 << 24
"""Numbers that are held of a matrix of images and prompts."""


@dataclass(frozen=True)
class Classes:
    """What there is to tell apart, and how it is asked for."""

    names: tuple[str, ...]
    """As the labels say it."""
    words: tuple[tuple[str, ...], ...]
    """What the templates are filled with, for each class."""
    templates: tuple[str, ...]

    def prompts(self, templates: Sequence[str]) -> list[list[str]]:
        """The prompts of each class."""
        return [[t.replace("{}", w) for t in templates for w in words] for words in self.words]


class ZeroShot(NamedTuple):
    """How many images were told right."""

    accuracy: float
    per_class: dict[str, float]
    """Of the classes that there are images of."""

    @property
    def balanced(self) -> float:
        """Mean over classes."""
        return sum(self.per_class.values()) / len(self.per_class)


def read_classes(path: Path, label: str) -> Classes:
    """Read a file of classes; a list under the label's own name stands for `classes`.

    Raises:
        InputError: it is no such file.
    """
    try:
        raw: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the classes: {error}", where=str(path)) from error
    remedy = 'write {"templates": ["a photo of {}"], "classes": ["cat", "dog"]}'
    told: dict[str, Any] = raw if isinstance(raw, dict) else {}
    listed, templates = told.get("classes", told.get(label)), told.get("templates")
    if not _texts(templates) or not all("{}" in template for template in templates):
        raise InputError("`templates` is no list of texts with {}", where=str(path), remedy=remedy)
    if not isinstance(listed, list) or len(listed) < 2:
        raise InputError(
            f"neither `classes` nor `{label}` lists classes", where=str(path), remedy=remedy
        )
    found = [_class(item, path, remedy) for item in listed]
    names = tuple(name for name, _ in found)
    if len(set(names)) < len(names):
        raise InputError("a class is named twice", where=str(path))
    return Classes(names, tuple(words for _, words in found), tuple(templates))


def _class(item: Any, path: Path, remedy: str) -> tuple[str, tuple[str, ...]]:
    if isinstance(item, str):
        return item, (item,)
    told: dict[str, Any] = item if isinstance(item, dict) else {}
    name = told.get("name")
    words = told.get("words", [name])
    if not isinstance(name, str) or not _texts(words):
        raise InputError(f"no class: {str(item)[:80]}", where=str(path), remedy=remedy)
    return name, tuple(words)


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def class_embeddings(prompts: Sequence[Sequence[str]], encode: Encode) -> Tensor:
    """Embeddings (classes, E) of norm 1: the mean of each class's prompts."""
    flat_PE = encode([prompt for each in prompts for prompt in each])
    parts = flat_PE.split([len(each) for each in prompts])  # type: ignore[no-untyped-call]
    return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=1)


def prompt_probabilities(
    image_NE: Tensor, prompts: Sequence[Sequence[str]], encode: Encode, scale: float
) -> Tensor:
    """How likely (images, classes) a prompt of each class is on average, among all prompts."""
    flat_PE = encode([prompt for each in prompts for prompt in each])
    counts_C = torch.tensor([len(each) for each in prompts], device=flat_PE.device)
    class_P = torch.arange(len(prompts), device=flat_PE.device).repeat_interleave(counts_C)
    found = []
    for part_NE in image_NE.split(max(1, BLOCK // len(flat_PE))):  # type: ignore[no-untyped-call]
        likely_NP = (scale * (part_NE @ flat_PE.T)).softmax(1)
        sums_NC = likely_NP.new_zeros(len(part_NE), len(prompts))
        found.append(sums_NC.index_add_(1, class_P, likely_NP) / counts_C)
    return torch.cat(found)


def classify(scores_NC: Tensor, labels: Sequence[str], names: Sequence[str]) -> ZeroShot:
    """Compare the class of the highest score of each image with its label.

    Raises:
        InputError: a label is no class.
    """
    number = {name: i for i, name in enumerate(names)}
    if unknown := sorted(set(labels) - set(number)):
        raise InputError(
            f"{len(unknown)} labels are no classes: {', '.join(unknown[:3])}",
            where="classes",
            remedy="list every label under `classes`",
        )
    wanted_N = torch.tensor([number[label] for label in labels])
    right_N = (scores_NC.argmax(1).cpu() == wanted_N).double()
    present = torch.unique(wanted_N).tolist()
    by_class = {names[c]: right_N[wanted_N == c].mean().item() for c in present}
    return ZeroShot(right_N.mean().item(), by_class)


def zero_shot(
    image_NE: Tensor,
    labels: Sequence[str],
    classes: Classes,
    encode: Encode,
    *,
    scale: float | None = None,
) -> tuple[ZeroShot, Mapping[str, ZeroShot]]:
    """What the ensemble of all prompts tells right, and what each template alone does with a
    class's first word. With the `scale` of the model's logits it is one of probabilities."""

    def near(prompts: Sequence[Sequence[str]]) -> Tensor:
        return image_NE @ class_embeddings(prompts, encode).T

    def told(scores_NC: Tensor) -> ZeroShot:
        return classify(scores_NC, labels, classes.names)

    single = {
        template: told(near([[template.replace("{}", words[0])] for words in classes.words]))
        for template in classes.templates
    }
    every = classes.prompts(classes.templates)
    if scale is None:
        return told(near(every)), single
    return told(prompt_probabilities(image_NE, every, encode, scale)), single
