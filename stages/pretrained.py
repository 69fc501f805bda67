"""Bring in a language model that somebody else trained, to go on from.

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

`path` is a folder of GPT-2, Llama, Qwen3 or Qwen3-MoE as `transformers` writes it, also a snapshot
in the cache of the hub's library, or a name on the Hugging Face hub (`owner/name`, with
`revision`). A model of the hub is what its commit holds: a branch or tag is looked up when the
pipeline is planned, and the model's card names the commit.

Weights are read from safetensors alone, checked against the config, and written as float32; the
tokenizer's files come along. It may be any byte-level BPE, or SentencePiece, of a `tokenizer.json`,
and trains and measures language models; fine-tuning and what comes after take models whose
tokenizer was made here, for chats have control tokens. Figures: `parameters`, `active_parameters`.
"""

from __future__ import annotations

import errno
import re
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic_io import DISK_FULL, disk_errors, read_json
from pipeline.errors import InputError
from pipeline.stage import Inputs, Params, stage
from stages.data.input_errors import as_input_error

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
    from stages.models.hf_export import SpecialIds

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTION = ("*.json", "*.txt", "*.model", "README.md")
"""What of a folder is looked at: never a pickle."""
_PATIENCE = 10  # seconds for the hub to answer
_OURS = ("config.json", "generation_config.json", "model.safetensors.index.json")


class PretrainedParams(Params):
    """What a pipeline file may say of the stage."""

    path: str
    """A folder, or `owner/name` on the Hugging Face hub."""
    revision: str | None = None
    """Of the hub's repository: a commit, a tag or a branch. A local folder has none."""

    @property
    def known_ids(self) -> int | None:
        """The ids that a local folder's model has rows for, for the plan of what is trained from
        it; its tokenizer may have less."""
        config: dict[str, Any] = read_json(Path(self.path) / "config.json", {})
        found = config.get("vocab_size")
        return found if isinstance(found, int) else None

    def externals(self) -> dict[str, str]:
        """The content of a local folder; of the hub, the name and the commit.

        Raises:
            InputError: there is no such folder, and it is no name of the hub's either; or the hub
                does not say which commit a branch or tag is; or files of the folder lie elsewhere.
        """
        from pipeline.storage.artifact import hash_file

        folder = Path(self.path)
        if folder.is_dir():
            if self.revision is not None:
                raise InputError(
                    f"{self.path} is a local folder, which has no revisions",
                    where="revision",
                    remedy="leave it out; the folder's content counts",
                )
            found = {path.name: hash_file(path) for path in _files(folder)}
            if "config.json" not in found or not any(n.endswith(".safetensors") for n in found):
                raise InputError(
                    "no config.json with safetensors beside it",
                    where=self.path,
                    remedy="give a folder that holds the files themselves",
                )
            return found
        if self.path.count("/") != 1 or self.path.startswith((".", "/", "~")):
            raise InputError(
                "no such folder", where=self.path, remedy="give a folder, or owner/name of the hub"
            )
        return {"hub": f"{self.path}@{self.commit()}"}

    def commit(self) -> str:
        """The hub's commit that the revision is now.

        Raises:
            InputError: the hub has no such repository or revision, or is not reached.
        """
        if re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            return str(self.revision)
        from huggingface_hub import HfApi

        with _hub_errors(self.path):
            asked = HfApi().model_info(self.path, revision=self.revision, timeout=_PATIENCE)
            return str(asked.sha)


@stage("pretrained", inputs={}, output="Model", version=3)
def pretrained(params: PretrainedParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Bring in a language model that somebody else trained, to go on from."""
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.models.hf_export import is_chat, load_language_model, save_language_model

    origin = (ctx.externals or params.externals()).get("hub")  # as planned: a branch may have moved
    folder = _download(origin, ctx.scratch / "hub") if origin else Path(params.path)
    described = [path for path in _files(folder) if path.suffix != ".safetensors"]
    model = load_language_model(folder)
    tokenizer = _tokenizer(folder, model.config.vocab_size)
    card = f"# {Path(params.path).name}\n\nTaken over from `{origin or params.path}`."
    chat = isinstance(tokenizer, Tokenizer) and is_chat(folder)
    save_language_model(model, out, folder, card=card, chat=chat, ids=_ids(tokenizer, folder))
    for path in described:
        if not (out / path.name).exists() and path.name not in _OURS:
            shutil.copyfile(path, out / path.name)
    _tokenizer(out, model.config.vocab_size)  # which goes by the config that was written
    ctx.result(parameters=model.config.parameters, active_parameters=model.config.active_parameters)


def _tokenizer(folder: Path, known: int) -> AnyTokenizer | None:
    """The tokenizer that comes along, if one does, seen to be one that we can use.

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


def _ids(tokenizer: AnyTokenizer | None, folder: Path) -> SpecialIds:
    """The marks as the tokenizer has them: of several ends the config may name another first."""
    from stages.models.hf_export import SpecialIds, special_ids

    if tokenizer is None:
        return special_ids(folder)
    return SpecialIds(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)


def _files(folder: Path) -> list[Path]:
    """The files of a model's folder by name.

    A snapshot in a cache of the hub's library is of links into the blobs of its repository, which
    belong to it: `models--owner--name/snapshots/<commit>/config.json -> ../../blobs/<hash>`.

    Raises:
        InputError: one is a link out of the folder: what is there may be anything.
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
    """The hub's files of `owner/name@commit`, in a folder of the stage's own and the commit's.

    Raises:
        InputError: the hub has no such repository, or is not reached.
        Failure: the disk is full or broken.
    """
    from huggingface_hub import snapshot_download

    name, _, commit = origin.rpartition("@")
    folder = scratch / commit
    with disk_errors(folder), _hub_errors(name):
        patterns = [*WEIGHTS, *DESCRIPTION]
        found = snapshot_download(name, revision=commit, allow_patterns=patterns, local_dir=folder)
    return Path(found)


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
