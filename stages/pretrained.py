"""Import a pretrained language model.

    base: {uses: pretrained, path: ./Qwen3-0.6B-Base}
    tokens:
      uses: tokenize.pack
      documents: ${clean}
      tokenizer: ${base}                # the model's own
    gpt:
      uses: pretrain
      tokens: ${tokens}
      init_from: ${base}
      model: {family: qwen3, …}         # the same shape

`path` is a folder of GPT-2, Llama, Qwen3 or Qwen3-MoE as `transformers` writes it, a snapshot in
the cache of the hub's library, or a name on the Hugging Face Hub (`owner/name`, with `revision`). A
model of the hub is pinned to a commit: a branch or tag is resolved when the pipeline is planned,
and the model card names the commit.

Weights are read from safetensors only, checked against the config, and written as float32; the
tokenizer's files, chat templates, generation settings, all tokens that end a text, license and card
(as `README.origin.md`) are kept. Other files, and fields of `config.json` that the model here has
no use for, are listed in the report and the stage's log. The tokenizer may be any byte-level BPE,
or SentencePiece, of a `tokenizer.json`. A model with a chat template takes prompts as chats, and is
fine-tuned in that format; for one without, `sft` and `reward` name a format (`chat_template`).
Metrics: `parameters`, `active_parameters`, `left_out`.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import panels
from pipeline.atomic_io import DISK_FULL, disk_errors, read_json
from pipeline.errors import InputError, Problem
from pipeline.stage import Inputs, Params, stage
from stages.data.input_errors import as_input_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pipeline.context import Context
    from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
    from stages.models.hf_io import SpecialIds

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTION = (
    *("*.json", "*.txt", "*.model", "*.jinja", "additional_chat_templates/*.jinja"),
    *("README.md", "LICENSE*", "NOTICE*"),
)
"""Files of a folder that are read: never a pickle."""
_LONGEST = 200  # characters of a value in the list of what is left out
_TIMEOUT = 10  # seconds for a response of the hub
_WRITTEN = ("config.json", "generation_config.json", "model.safetensors.index.json")
"""Files that are written anew."""


class PretrainedParams(Params):
    """Parameters of `pretrained`."""

    path: str
    """Folder, or `owner/name` on the Hugging Face Hub."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; none for a local folder. Default: the main
    branch."""

    @property
    def model_folder(self) -> Path | None:
        """The local folder; None if the model is on the hub, whose files are not yet here."""
        folder = Path(self.path)
        return folder if folder.is_dir() else None

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield a local folder whose models no family reads."""
        from stages.models.registry import find_family_of_folder

        config: dict[str, Any] = read_json(Path(self.path) / "config.json", {})
        if config:
            try:
                find_family_of_folder(config, Path(self.path), "causal")
            except InputError as error:
                yield Problem("path", error.message, error.remedy)

    @property
    def known_ids(self) -> int | None:
        """Rows of a local folder's embedding, for plans of what is trained from it; its tokenizer
        may have fewer ids."""
        config: dict[str, Any] = read_json(Path(self.path) / "config.json", {})
        found = config.get("vocab_size")
        return found if isinstance(found, int) else None

    def externals(self) -> dict[str, str]:
        """Return the digests of a local folder's files, or the name and commit on the hub.

        Raises:
            InputError: there is no such folder, nor such a name on the hub; or the hub does not
                resolve the branch or tag; or files of the folder are links out of it.
        """
        from pipeline.storage.artifact import hash_file

        folder = Path(self.path)
        if folder.is_dir():
            if self.revision is not None:
                raise InputError(
                    f"{self.path} is a local folder, which has no revisions",
                    where="revision",
                    remedy="remove it; the folder's content counts",
                )
            files = _files(folder)
            found = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
            if "config.json" not in found or not any(n.endswith(".safetensors") for n in found):
                raise InputError(
                    "no config.json next to safetensors",
                    where=self.path,
                    remedy="give a folder that holds the files themselves",
                )
            return found
        if self.path.count("/") != 1 or self.path.startswith((".", "/", "~")):
            raise InputError(
                "no such folder", where=self.path, remedy="give a folder, or owner/name of the hub"
            )
        return {"hub": f"{self.path}@{self.commit()}"}

    def changed_externals(self, planned: Mapping[str, str]) -> list[str]:
        """Return the files of a local folder that are not those of the plan; a commit of the hub,
        which is read whatever its branch names now, never changes."""
        return [] if "hub" in planned else super().changed_externals(planned)

    def commit(self) -> str:
        """Return the hub's commit of the revision.

        Raises:
            InputError: the hub has no such repository or revision, or cannot be reached.
        """
        if re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            return str(self.revision)
        from huggingface_hub import HfApi

        with _hub_errors(self.path):
            info = HfApi().model_info(self.path, revision=self.revision, timeout=_TIMEOUT)
            return str(info.sha)


@stage(
    "pretrained",
    inputs={},
    output="Model",
    version=6,
    metrics={
        "parameters": "parameters of the model",
        "active_parameters": "parameters that work on a token",
        "left_out": "files and fields that are left out or changed",
    },
)
def pretrained(params: PretrainedParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Import a pretrained language model."""
    from stages.models.model_io import load_language_model, save_language_model

    origin = (ctx.externals or params.externals()).get("hub")  # as planned: a branch may have moved
    folder = _download(origin, ctx.scratch / "hub") if origin else Path(params.path)
    files = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    model = load_language_model(folder)
    tokenizer = _tokenizer(folder, model.config.vocab_size)
    card = f"# {Path(params.path).name}\n\nImported from `{origin or params.path}`."
    chat, ids = _takes_chats(tokenizer, folder), _ids(tokenizer, folder)
    save_language_model(model, out, folder, card=card, chat=chat, ids=ids)
    for name, path in files.items():
        target = out / {"README.md": "README.origin.md"}.get(name, name)
        if path.suffix != ".safetensors" and name not in _WRITTEN and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    _tokenizer(out, model.config.vocab_size)  # reads the config that was written
    left_out = [*_unread_files(_names(folder, origin, ctx), files), *_changed_fields(folder, out)]
    if left_out:
        columns = ["what", "name", "original", "imported"]
        ctx.panel(panels.table("Left out or changed", columns, left_out))
    for what, name, original, imported in left_out:
        ctx.log(f"{what} {name}: original {original}, imported {imported}")
    ctx.result(
        parameters=model.config.parameters,
        active_parameters=model.config.active_parameters,
        left_out=len(left_out),
    )


def _names(folder: Path, origin: str | None, ctx: Context) -> list[str]:
    """Return the names of all files of a folder, or of `owner/name@commit` on the hub; none if the
    hub cannot be reached, because files may come from its cache."""
    if origin is None:
        found = (path for path in folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in found)
    from huggingface_hub import HfApi

    name, _, commit = origin.rpartition("@")
    try:
        with _hub_errors(name):
            return sorted(HfApi().list_repo_files(name, revision=commit))
    except InputError as error:
        ctx.log(f"the files that are left out cannot be listed: {error.message}")
        return []


def _unread_files(names: Iterable[str], read: Mapping[str, Path]) -> Iterator[tuple[str, ...]]:
    """Yield a row per file that is not read; of hidden folders none, of others one per folder."""
    shown = {name if name.count("/") < 1 else name.partition("/")[0] + "/" for name in names}
    taken = set(read) | {f"{name.partition('/')[0]}/" for name in read}
    for name in sorted(shown - taken):
        if not name.startswith("."):
            yield "file", name, "present", "left out"


def _changed_fields(folder: Path, out: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row per field of `config.json` that is not written, or written with another value."""
    from stages.models.hf_io import read_config

    there, here = read_config(folder), read_config(out)
    for key, value in sorted(there.items()):
        if key not in here or here[key] != value:
            written = json.dumps(here[key]) if key in here else "left out"
            yield "field", key, json.dumps(value)[:_LONGEST], written[:_LONGEST]


def _tokenizer(folder: Path, known: int) -> AnyTokenizer | None:
    """Return the folder's tokenizer, if it has one that can be used.

    Raises:
        InputError: it cannot be read, it lacks the end of documents, or has ids that the model
            does not know.
    """
    from stages.data.tokenizers.huggingface_tokenizer import has_tokenizer, open_tokenizer

    if not has_tokenizer(folder):
        return None
    tokenizer = open_tokenizer(folder)
    if len(tokenizer) > known:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} ids, the model knows {known}",
            where=str(folder),
            remedy="take both from the same model",
        )
    return tokenizer


def _takes_chats(tokenizer: AnyTokenizer | None, folder: Path) -> bool:
    """Return whether prompts are given in a chat format: of a model of Headwater its card decides,
    of any other its template."""
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.data.tokenizers.template_files import model_template
    from stages.models.hf_io import is_chat

    if isinstance(tokenizer, Tokenizer):
        return is_chat(folder)
    return tokenizer is not None and model_template(folder) is not None


def _ids(tokenizer: AnyTokenizer | None, folder: Path) -> SpecialIds:
    """Return the tokenizer's special ids; of several ends the config may name another first."""
    from stages.models.hf_io import SpecialIds, special_ids

    if tokenizer is None:
        return special_ids(folder)
    return SpecialIds(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


def _files(folder: Path) -> list[Path]:
    """Return the files of a model's folder, sorted by name.

    A snapshot in a cache of the hub's library consists of links into the blobs of its repository,
    which are allowed: `models--owner--name/snapshots/<commit>/config.json -> ../../blobs/<hash>`.

    Raises:
        InputError: one is a link out of the folder, to unknown content.
    """
    roots = [folder.resolve()]
    snapshots = roots[0].parent
    if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
        roots.append(snapshots.parent / "blobs")
    found = {path for pattern in (*WEIGHTS, *DESCRIPTION) for path in folder.glob(pattern)}
    files = sorted(path for path in found if path.is_file())
    for path in files:
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise InputError(
                f"{path.name} is a link out of the folder",
                where=str(path),
                remedy="give a folder that holds the files themselves",
            )
    return files


def _download(origin: str, scratch: Path) -> Path:
    """Download the files of `owner/name@commit` into a folder of that commit, and return it.

    A download that was completed before is reused if its files are intact.

    Raises:
        InputError: the hub has no such repository, or cannot be reached.
        Failure: the disk is full or broken.
    """
    from huggingface_hub import snapshot_download

    from stages.distributed.commit_seals import is_intact, seal_of, write_seal

    name, _, commit = origin.rpartition("@")
    folder, config = scratch / commit, scratch / commit / "config.json"
    if seal_of(config).exists() and not is_intact(config):
        shutil.rmtree(folder)
    with disk_errors(folder), _hub_errors(name):
        patterns = [*WEIGHTS, *DESCRIPTION]
        snapshot_download(name, revision=commit, allow_patterns=patterns, local_dir=folder)
    if config.exists():
        write_seal(config, _files(folder))
    return folder


def _hub_errors(name: str) -> AbstractContextManager[None]:
    """Return a context that raises the errors of the hub's library as an `InputError`, except for
    errors of the disk."""

    def translate(error: Exception) -> InputError | None:
        if isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EIO):
            return None
        return InputError(
            f"Hugging Face Hub request failed: {error}",
            where=name,
            remedy="check the name and the connection, or give a local folder; a full commit as "
            "`revision` is planned without the hub",
        )

    return as_input_error(translate)
