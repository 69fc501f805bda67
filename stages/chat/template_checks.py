"""Checks of models before anything runs: what `headwater plan` knows of them, and refuses.

A model is followed up its edges to where it comes from: a folder that `pretrained` imports, whose
small files are read, or the parameters of `pretrain`. A model of the store or of the hub is not
known before the run, which checks the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic_io import read_json
from pipeline.errors import InputError, Problem
from pipeline.stage import Params
from stages.data.hashing import hash128_hex
from stages.data.tokenizers.template_files import TEMPLATES, model_template, named_template
from stages.models.lora_config import LoRAConfig, target_problem
from stages.models.model_params import LanguageModelSection
from stages.models.presets import PRESETS
from stages.models.registry import Capability, families, find_family_of_folder

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageModelConfig

_MODEL_EDGES = ("model", "policy", "init_from")
"""The edge of a stage on which the weights arrive that it trains further."""
_TOKENIZER_EDGES = ("tokenizer", "tokens[0].tokenizer")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
_IMPORT = "import a folder that has tokenizer.json"


@dataclass(frozen=True)
class KnownModel:
    """Facts about a model that are known before the run; None is unknown."""

    context_length: int | None = None
    family: str | None = None
    folder: Path | None = None
    """Folder of the tokenizer, if it is of an imported model."""
    trained_ids: int | None = None
    """Number of ids of the tokenizer, if `tokenize.train` makes it."""
    chat_template: str | None = None
    """Template that a stage upstream gives the model."""

    @property
    def foreign(self) -> bool:
        """True if the tokenizer is known to be one that Headwater did not make."""
        return self.folder is not None and not _is_headwater(self.folder)

    @property
    def has_template(self) -> bool:
        """True unless the model is known to lack a chat template."""
        if self.folder is None or not self.foreign or self.chat_template is not None:
            return True
        return model_template(self.folder) is not None


def known_model(upstream: Mapping[str, Params], edge: str) -> KnownModel:
    """Return what the stages upstream tell about the model on an edge."""
    path, found = edge, KnownModel()
    while path in upstream:
        params = upstream[path]
        found = _with(found, params)
        for name in _TOKENIZER_EDGES:
            if f"{path}.{name}" in upstream:
                found = _with_tokenizer(found, upstream[f"{path}.{name}"])
        path = next((f"{path}.{e}" for e in _MODEL_EDGES if f"{path}.{e}" in upstream), "")
    return found


def _with(found: KnownModel, params: Params) -> KnownModel:
    """Return what is known after a stage further up; the nearest stage counts."""
    section, folder = getattr(params, "model", None), model_folder(params)
    config: dict[str, Any] = read_json(folder / "config.json", {}) if folder else {}
    context = _context_of_section(params) or _context(config)
    return KnownModel(
        found.context_length or context,
        found.family or getattr(section, "family", None) or _family(config, folder),
        found.folder or (None if found.trained_ids else folder),
        found.trained_ids,
        found.chat_template or getattr(params, "chat_template", None),
    )


def _with_tokenizer(found: KnownModel, params: Params) -> KnownModel:
    """Return what is known with the tokenizer of a stage; the nearest counts."""
    if found.folder or found.trained_ids:
        return found
    trained = getattr(params, "vocab_size", None)
    return KnownModel(
        found.context_length,
        found.family,
        model_folder(params),
        trained if isinstance(trained, int) else None,
        found.chat_template,
    )


def known_config(upstream: Mapping[str, Params], edge: str) -> LanguageModelConfig | None:
    """Return the shape of the model on an edge, but for its vocabulary; None if it is unknown."""
    path = edge
    while path in upstream:
        params = upstream[path]
        section, preset = getattr(params, "model", None), getattr(params, "preset", None)
        if isinstance(section, LanguageModelSection) and preset in PRESETS:
            with suppress(ValueError):  # which `pretrain` itself refuses
                return section.config(preset, 256)
        if folder := model_folder(params):
            with suppress(InputError, KeyError, ValueError):  # which the import itself refuses
                raw: dict[str, Any] = read_json(folder / "config.json", {})
                conversion = find_family_of_folder(raw, folder, "causal").conversion()
                config: LanguageModelConfig = conversion.read_config(raw, str(folder))
                return config
        path = next((f"{path}.{e}" for e in _MODEL_EDGES if f"{path}.{e}" in upstream), "")
    return None


def model_folder(params: Params | None) -> Path | None:
    """Return the local folder that a stage imports a model from."""
    folder = getattr(params, "model_folder", None)
    return folder if isinstance(folder, Path) else None


def _context_of_section(params: Params) -> int | None:
    """Return the context length that a `model:` section or its preset gives."""
    section, preset = getattr(params, "model", None), getattr(params, "preset", None)
    if not isinstance(section, LanguageModelSection) or preset not in PRESETS:
        return None
    return section.shape(preset).context_length


def _context(config: Mapping[str, Any]) -> int | None:
    sizes = (config.get(key) for key in _CONTEXT_KEYS)
    return next((size for size in sizes if isinstance(size, int)), None)


def _family(config: Mapping[str, Any], folder: Path | None) -> str | None:
    if folder is None or not config:
        return None
    try:
        return find_family_of_folder(config, folder, "causal").name
    except InputError:
        return None  # which the import itself refuses


def _is_headwater(folder: Path) -> bool:
    from stages.data.tokenizers.sentencepiece_tokenizer import is_headwater_tokenizer

    return is_headwater_tokenizer(folder)


def template_externals(template: str | None) -> dict[str, str]:
    """Return the digest of a chat template in a file, for the fingerprint of a stage.

    Raises:
        InputError: there is no such template.
    """
    if template is None or template in TEMPLATES:
        return {}
    return {"chat_template": hash128_hex(named_template(template))}


# --- what is refused -----------------------------------------------------------------------------


def check_family(upstream: Mapping[str, Params], edge: str, needs: Capability) -> Iterator[Problem]:
    """Yield a model whose family lacks a capability."""
    family = known_model(upstream, edge).family
    known = families()
    if family and family in known and needs not in known[family].capabilities:
        able = ", ".join(name for name, one in known.items() if needs in one.capabilities)
        use = {"scalar_head": "be a reward model", "kv_cache": "generate text"}.get(needs, needs)
        yield Problem(edge, f"a model of family {family} cannot {use}", f"use one of {able}")


def check_template(
    upstream: Mapping[str, Params], edge: str, given: str | None = None
) -> Iterator[Problem]:
    """Yield an imported model that has no tokenizer, or no chat template where none is given.

    `given` is the stage's own `chat_template`.
    """
    model = known_model(upstream, edge)
    if model.folder is None or not model.foreign:
        return
    if not (model.folder / "tokenizer.json").exists():
        yield Problem(edge, f"{model.folder} has no tokenizer that can be read", _IMPORT)
    elif given is None and not model.has_template:
        yield Problem(
            edge,
            f"{model.folder} has no chat template",
            "set chat_template in the stage that trains it on chats: chatml, llama3, plain, or "
            "the path of a jinja file",
        )


def check_tokenizers(upstream: Mapping[str, Params], edges: Sequence[str]) -> Iterator[Problem]:
    """Yield the first model whose tokenizer is known to differ from that of the first edge."""
    found = {edge: known_model(upstream, edge) for edge in edges if edge in upstream}
    first, *others = found or [""]
    for edge in others:
        if reason := _difference(found[first], found[edge]):
            remedy = "use models that come from the same base model"
            yield Problem(edge, f"its tokenizer is not that of {first}: {reason}", remedy)


def _difference(first: KnownModel, other: KnownModel) -> str:
    if first.folder and other.folder:
        same = tokenizer_digest(first.folder) == tokenizer_digest(other.folder)
        return "" if same else f"the files of {other.folder} and {first.folder} differ"
    if first.trained_ids and other.trained_ids and first.trained_ids != other.trained_ids:
        return f"{other.trained_ids} ids, and {first.trained_ids} ids"
    for one, trained in ((first, other.trained_ids), (other, first.trained_ids)):
        if one.foreign and trained:
            return f"one is of {one.folder}, the other of `tokenize.train`"
    return ""


def tokenizer_digest(folder: Path) -> str:
    """Return a digest of the files that determine the ids of a text."""
    from pipeline.storage.artifact import hash_file

    files = (folder / name for name in ("tokenizer.json", "tokenizer.model"))
    return next((hash_file(path) for path in files if path.exists()), "")


def check_context(
    upstream: Mapping[str, Params], edges: Sequence[str], key: str, tokens: int | None, room: str
) -> Iterator[Problem]:
    """Yield a number of generated tokens that leaves no room in a model's context.

    Args:
        upstream: the parameters upstream.
        edges: edges of models; the shortest context counts.
        key: the parameter.
        tokens: its value.
        room: what there is no room for, as `a prompt`.
    """
    known = [known_model(upstream, edge).context_length for edge in edges]
    context = min((length for length in known if length), default=None)
    if context and tokens and tokens >= context:
        yield Problem(
            key,
            f"{tokens} leaves no room for {room} in a context of {context}",
            f"lower it below {context}",
        )


def check_lora(
    upstream: Mapping[str, Params], edge: str, lora: LoRAConfig | None
) -> Iterator[Problem]:
    """Yield targets of adapters that the model does not have."""
    config = known_config(upstream, edge)
    if lora and config and (problem := target_problem(config, lora.targets)):
        yield Problem("lora.targets", *problem)


def check_max_length(
    upstream: Mapping[str, Params], edge: str, max_length: int | None
) -> Iterator[Problem]:
    """Yield a `max_length` beyond the context of the model."""
    context = known_model(upstream, edge).context_length
    if context and max_length and max_length > context:
        reason = f"{max_length} is longer than the model's context of {context}"
        yield Problem("max_length", reason, f"set at most {context}")


def check_held_out(upstream: Mapping[str, Params], edge: str, use: str) -> Iterator[Problem]:
    """Yield data without an eval split where `use` needs held-out data."""
    params = upstream.get(edge)
    given = (getattr(params, key, None) for key in ("split_field", "eval_sources"))
    if getattr(params, "eval_share", None) == 0 and not any(given):
        yield Problem(
            edge,
            f"its split `eval` is empty (eval_share: 0), and {use} needs held-out data",
            "set eval_share above 0 in the stage that reads the data, or disconnect the input",
        )
