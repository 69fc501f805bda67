"""Bring in a language model that somebody else trained, to go on from.

    base: {uses: pretrained, path: ./Qwen3-0.6B-Base}
    gpt:
      uses: pretrain
      tokens: ${tokens}                 # packed with the model's own tokenizer
      start: ${base}
      model: {family: qwen3, …}         # the same shape

`path` is a folder of GPT-2, Llama, Qwen3 or Qwen3-MoE as `transformers` writes it, or a name on
the Hugging Face hub (`owner/name`, with `revision`). Weights are read from safetensors alone,
checked against the config, and written as float32; the tokenizer's files come along. Figures:
`parameters`, `active_parameters`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.stage import Inputs, Params, stage

if TYPE_CHECKING:
    from pipeline.context import Context

WEIGHTS, DESCRIPTION = ("*.safetensors", "*.safetensors.index.json"), ("*.json", "*.txt", "*.model")
"""What of a folder is looked at: never a pickle."""
_OURS = ("config.json", "generation_config.json", "model.safetensors.index.json")


class PretrainedParams(Params):
    """What a pipeline file may say of the stage."""

    path: str
    """A folder, or `owner/name` on the Hugging Face hub."""
    revision: str | None = None
    """Of the hub's repository: a commit, a tag or a branch; the folder's content decides in a
    local one."""

    def externals(self) -> dict[str, str]:
        """The content of a local folder; of the hub, the name and the revision.

        Raises:
            InputError: there is no such folder, and it is no name of the hub's either.
        """
        from pipeline.artifact import hash_file

        folder = Path(self.path)
        if folder.is_dir():
            found = {path.name: hash_file(path) for path in _files(folder)}
            if "config.json" not in found or not any(n.endswith(".safetensors") for n in found):
                raise InputError(
                    "no config.json with safetensors beside it (links out of the folder do not "
                    "count)",
                    where=self.path,
                    remedy="give a folder that holds the files themselves",
                )
            return found
        if self.path.count("/") != 1 or self.path.startswith((".", "/", "~")):
            raise InputError(
                "no such folder", where=self.path, remedy="give a folder, or owner/name of the hub"
            )
        return {"hub": f"{self.path}@{self.revision or 'main'}"}


@stage("pretrained", inputs={}, output="Model", version=1)
def pretrained(params: PretrainedParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Bring in a language model that somebody else trained, to go on from."""
    from stages.models.huggingface import load_language_model, save_language_model, special_ids

    folder = Path(params.path)
    if not folder.is_dir():
        folder = _download(params, ctx.scratch / "hub")
    model = load_language_model(folder)
    card = f"# {folder.name}\n\nTaken over from `{params.path}`."
    save_language_model(model, out, folder, card=card, ids=special_ids(folder))
    for path in _files(folder, DESCRIPTION):
        if not (out / path.name).exists() and path.name not in _OURS:
            shutil.copyfile(path, out / path.name)
    ctx.result(parameters=model.config.parameters, active_parameters=model.config.active_parameters)


def _files(folder: Path, patterns: tuple[str, ...] = (*WEIGHTS, *DESCRIPTION)) -> list[Path]:
    """The files of a model's folder by name, links that leave it left out."""
    root = folder.resolve()
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and path.resolve().parent == root)


def _download(params: PretrainedParams, folder: Path) -> Path:
    """The hub's files, in a folder of the stage's own.

    Raises:
        InputError: the hub has no such repository, or is not reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            params.path,
            revision=params.revision,
            allow_patterns=[*WEIGHTS, *DESCRIPTION],
            local_dir=folder,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"the hub does not give it: {error}",
            where=params.path,
            remedy="check the name and the connection, or give a local folder",
        ) from error
    return Path(found)
