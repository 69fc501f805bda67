"""`report`: the HTML page of a run, and the parts of it that MLflow lacks."""

from __future__ import annotations

import click

from launch.ui import console
from launch.ui.options import find_run, mlflow_uri, store_option
from pipeline.errors import Failure


@click.command()
@click.argument("name", metavar="RUN", default="latest")
@click.option("--sync", is_flag=True, help="Also send missing data to MLflow.")
@store_option
def report(name: str, sync: bool, store_path: str) -> None:
    """Write the HTML report of a run (one self-contained file) and print its path."""
    from launch.report.run_page import write_run_page

    run = find_run(store_path, name)
    page = write_run_page(run, run.store)
    if not page.is_file():
        raise Failure("the report was not written", where=str(page))
    console.echo(str(page))
    if sync:
        from launch.tracking.cursor import mirrored_uri
        from launch.tracking.mirror import Mirror

        Mirror(run.store, run, mlflow_uri() or mirrored_uri(run)).sync()
        console.echo("MLflow is up to date", "green")
