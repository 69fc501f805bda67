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
tokenizer's files are copied. It may be any byte-level BPE, or SentencePiece, of a `tokenizer.json`,
for training and measuring language models; fine-tuning and later stages need a tokenizer of
`tokenize.train`, because chats use its control tokens. Metrics: `parameters`, `active_parameters`.
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
    from stages.models.hf_io import SpecialIds

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DESCRIPTION = ("*.json", "*.txt", "*.model", "README.md")
"""Files of a folder that are read: never a pickle."""
_TIMEOUT = 10  # seconds for a response of the hub
_OURS = ("config.json", "generation_config.json", "model.safetensors.index.json")


class PretrainedParams(Params):
    """Parameters of `pretrained`."""

    path: str
    """Folder, or `owner/name` on the Hugging Face Hub."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; none for a local folder. Default: the main
    branch."""

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
            found = {path.name: hash_file(path) for path in _files(folder)}
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


@stage("pretrained", inputs={}, output="Model", version=4)
def pretrained(params: PretrainedParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Import a pretrained language model."""
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.models.hf_io import is_chat
    from stages.models.model_io import load_language_model, save_language_model

    origin = (ctx.externals or params.externals()).get("hub")  # as planned: a branch may have moved
    folder = _download(origin, ctx.scratch / "hub") if origin else Path(params.path)
    described = [path for path in _files(folder) if path.suffix != ".safetensors"]
    model = load_language_model(folder)
    tokenizer = _tokenizer(folder, model.config.vocab_size)
    card = f"# {Path(params.path).name}\n\nImported from `{origin or params.path}`."
    chat = isinstance(tokenizer, Tokenizer) and is_chat(folder)
    save_language_model(model, out, folder, card=card, chat=chat, ids=_ids(tokenizer, folder))
    for path in described:
        if not (out / path.name).exists() and path.name not in _OURS:
            shutil.copyfile(path, out / path.name)
    _tokenizer(out, model.config.vocab_size)  # reads the config that was written
    ctx.result(parameters=model.config.parameters, active_parameters=model.config.active_parameters)


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

    Raises:
        InputError: the hub has no such repository, or cannot be reached.
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
