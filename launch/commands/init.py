"""`init`: template files of a new pipeline, stage or cluster."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click

from launch.ui import console
from pipeline.errors import UserError, did_you_mean

TEMPLATE_FOLDER = Path(__file__).parents[1] / "templates"


class Template(NamedTuple):
    """Files of a template, and the command to type next."""

    files: dict[str, str]
    """File in launch/templates -> file to write."""
    next_command: str
    purpose: str


TEMPLATES = {
    "pipeline": Template(
        {"pipeline.yaml": "pipeline.yaml"}, "headwater plan pipeline.yaml", "a small pipeline"
    ),
    "stage": Template(
        {
            "stage.py.txt": "mystages/shout.py",
            "package.py.txt": "mystages/__init__.py",
            "stage_test.py.txt": "tests/test_shout.py",
            "pyproject.toml.txt": "pyproject.toml",
            "stage.yaml": "shout.yaml",
        },
        "pip install -e . && headwater plan shout.yaml",
        "a package with a custom stage",
    ),
    "cluster": Template(
        {"cluster.yaml": "configs/clusters/mine.yaml"},
        "headwater cluster status mine",
        "a cluster file",
    ),
}


@click.command()
@click.argument("template", metavar="[TEMPLATE]", default="pipeline")
@click.argument("folder", metavar="[FOLDER]", default=".", type=click.Path(file_okay=False))
def init(template: str, folder: str) -> None:
    """Write the files of a template: pipeline, stage or cluster. Existing files are kept.

    TEMPLATE: default pipeline, which writes pipeline.yaml. FOLDER: default the current folder.
    """
    if template not in TEMPLATES:
        raise UserError(f"no template {template!r}", remedy=did_you_mean(template, TEMPLATES))
    files, next_command, purpose = TEMPLATES[template]
    existing = [target for target in files.values() if (Path(folder) / target).exists()]
    if existing:
        raise UserError(
            f"{', '.join(existing)} already exists and is not overwritten",
            where=folder,
            remedy=f"headwater init {template} NEW-FOLDER",
        )
    for source, target in files.items():
        path = Path(folder) / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((TEMPLATE_FOLDER / source).read_text())
        console.echo(f"wrote {path}")
    console.suggest_command(next_command, purpose)
