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
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@store_option
@json_option
def generate(
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    store_path: str,
    as_json: bool,
) -> None:
    """Generate text with MODEL: a folder, a fingerprint, RUN:STAGE or NAME@ALIAS."""
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
    folder = find_model(model, open_store(store_path))
    from stages.generation.generate import generate_text

    text = generate_text(folder, prompt, tokens, temperature, seed)
    if as_json:
        console.print_json({"model": str(folder), "prompt": prompt, "text": text})
    else:
        console.echo(text)


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
