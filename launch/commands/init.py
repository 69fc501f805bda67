"""`init`: the files that something new begins with, ready to run and to be changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from launch.ui import console
from pipeline.errors import UserError, did_you_mean

TEMPLATES = Path(__file__).parents[1] / "templates"
FILES = {
    "pipeline": {"pipeline.yaml": "pipeline.yaml"},
    "stage": {
        "stage.py.txt": "mystages/shout.py",
        "package.py.txt": "mystages/__init__.py",
        "stage_test.py.txt": "tests/test_shout.py",
        "pyproject.toml.txt": "pyproject.toml",
        "stage.yaml": "shout.yaml",
    },
    "cluster": {"cluster.yaml": "configs/clusters/mine.yaml"},
}
ABOUT = {
    "pipeline": ("a small pipeline file", "headwater plan pipeline.yaml"),
    "stage": (
        "a package with a stage of your own",
        "pip install -e . && headwater plan shout.yaml",
    ),
    "cluster": ("a cluster's file", "headwater cluster status mine"),
}


@click.command()
@click.argument("template", metavar="[TEMPLATE]", default="pipeline")
@click.argument("folder", metavar="[FOLDER]", default=".", type=click.Path(file_okay=False))
def init(template: str, folder: str) -> None:
    """Write the files of a TEMPLATE: pipeline, stage or cluster. Nothing is overwritten."""
    if template not in FILES:
        raise UserError(f"there is no template {template!r}", remedy=did_you_mean(template, FILES))
    files = FILES[template]
    there = [target for target in files.values() if (Path(folder) / target).exists()]
    if there:
        raise UserError(
            f"{', '.join(there)} exists already, and nothing is overwritten",
            where=folder,
            remedy=f"headwater init {template} NEW-FOLDER",
        )
    for path in written(files, Path(folder)):
        console.echo(f"wrote {path}")
    console.suggest_command(ABOUT[template][1], ABOUT[template][0])


def written(files: dict[str, str], folder: Path) -> Iterator[Path]:
    """Copy templates to their places."""
    for source, target in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((TEMPLATES / source).read_text())
        yield path
