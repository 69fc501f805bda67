"""`generate`: sample text from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.ui import console
from launch.ui.options import json_option, mlflow_uri, open_store, store_option
from pipeline.errors import NotFound, UserError
from pipeline.kind import is_promotable

if TYPE_CHECKING:
    from pipeline.storage.artifact import Artifact
    from pipeline.storage.store import Store
    from stages.generation.history import History

FINGERPRINT = "0123456789abcdef"


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("prompt", metavar="PROMPT")
@click.option(
    "--tokens", default=128, show_default=True, metavar="N", help="Maximum number of new tokens."
)
@click.option(
    "--temperature", default=0.7, show_default=True, help="Sampling temperature; 0 is greedy."
)
@click.option(
    "--top-p", default=1.0, show_default=True, metavar="P", help="Probability mass to sample from."
)
@click.option(
    "--top-k", default=0, show_default=True, metavar="N", help="Tokens to sample from; 0 is all."
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option("--system", metavar="TEXT", help="Message of the system before the conversation.")
@click.option(
    "--history",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Messages before PROMPT: a JSON list, or JSON lines.",
)
@store_option
@json_option
def generate(
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    system: str | None,
    history: Path | None,
    store_path: str,
    as_json: bool,
) -> None:
    """Generate text with MODEL: a folder, a fingerprint, RUN:STAGE or NAME@ALIAS.

    A model of conversations gets PROMPT as a message of the user; its response ends at the token of
    any role.
    """
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
    before = read_messages(history, system)
    folder = find_model(model, open_store(store_path))
    from stages.generation.generate import generate_text

    found = generate_text(
        folder, prompt, tokens, temperature, seed, top_k=top_k, top_p=top_p, history=before
    )
    if as_json:
        values = {"text": found.text, "ended_by": found.ended_by}
        console.print_json({"model": str(folder), "prompt": prompt, **values})
        return
    console.echo(found.text)
    reason = f"at {found.ended_by}" if found.ended_by else "at the maximum number of tokens"
    console.print_line(f"ended {reason}", stderr=True)


def read_messages(path: Path | None, system: str | None) -> History | None:
    """Return the messages of a file, behind one of the system; None if there are neither.

    Raises:
        UserError: there are two messages of the system.
        InputError: the file cannot be read.
    """
    if path is None and system is None:
        return None
    from stages.data.conversation_dataset import Message
    from stages.generation.history import History, read_history

    found = read_history(path) if path else History()
    if system is None:
        return found
    if any(message.role == "system" for message in found.messages):
        raise UserError(
            f"--system, and {path} has a message of the system", remedy="give one of them"
        )
    return History((Message("system", system), *found.messages), found.tools)


def find_model(name: str, store: Store) -> Path:
    """Return the folder of a model; the checksums of an artifact are verified.

    Raises:
        NotFound: no such model.
        CorruptArtifact: the bytes differ from those that were published.
        UserError: the artifact is not a model.
    """
    if "@" not in name and (Path(name) / "config.json").is_file():
        return Path(name)
    artifact = store.ensure_verified(_artifact(name, store))
    if not is_promotable(artifact.kind):
        raise UserError(f"{name} holds {artifact.kind}, not a model")
    return artifact.path


def _artifact(name: str, store: Store) -> Artifact:
    from launch.promotion import model_stage, split_target, stage_artifact
    from launch.tracking.model_registry import Registry
    from pipeline.execution.run import Run

    if "@" in name:
        model, _, alias = name.partition("@")
        return Registry(store, mlflow_uri()).resolve(model, alias)
    if ":" in name:
        run_name, stage = split_target(name)
        run = Run.find(store, run_name)
        return stage_artifact(run, stage or model_stage(run))
    if len(name) >= 6 and set(name.rpartition("/")[2]) <= set(FINGERPRINT):
        return store.by_fingerprint(name)
    raise NotFound(
        f"no model {name!r}",
        remedy="name a folder, a fingerprint, RUN:STAGE or NAME@ALIAS (`headwater models`)",
    )
