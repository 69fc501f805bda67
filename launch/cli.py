"""The `headwater` command: one subcommand per module, imported only when it is called.

`--help`, `plan`, `list` and `status` must start fast, so this module imports no command, and no
command imports torch, ray or mlflow at module level.

Exit codes: 0 success, 1 failure, 2 invalid input, 3 a gate was refused, 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import click

from launch.ui import exit_handling
from pipeline.errors import HeadwaterError, UserError, did_you_mean

GC_THRESHOLD = 200_000  # new objects between two garbage collections

# Pydantic would search every installed package for plugins; none are used.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class CommandEntry(NamedTuple):
    """Module, help section and summary of a command."""

    module: str
    section: str
    summary: str


def _entries(section: str, package: str, summaries: dict[str, str]) -> dict[str, CommandEntry]:
    return {
        name: CommandEntry(f"launch.commands.{package}{name}", section, summary)
        for name, summary in summaries.items()
    }


COMMANDS = {
    **_entries(
        "Execute pipelines",
        "",
        {
            "run": "Run a pipeline locally or on a running Ray cluster.",
            "resume": "Continue a run where it stopped.",
            "plan": "Show what a run would do, why, and what it costs.",
            "submit": "Submit a pipeline to a cluster as one job.",
            "cancel": "Stop a run at its next checkpoint.",
        },
    ),
    **_entries(
        "Inspect runs",
        "",
        {
            "list": "List the runs of a store.",
            "status": "Show the state and progress of a run.",
            "logs": "Print the logs of a run or of one stage.",
            "show": "Show the artifacts of a run, or one artifact's lineage.",
            "diff": "Compare two runs or two artifacts.",
            "compare": "Plot training metrics of several runs by cost.",
            "report": "Write the HTML report of a run.",
        },
    ),
    **_entries(
        "Maintain the store",
        "",
        {
            "verify": "Verify the checksums of artifacts.",
            "gc": "List or delete artifacts that are no longer needed.",
        },
    ),
    **_entries(
        "Manage models",
        "registry.",
        {
            "promote": "Register a model if its gates pass.",
            "rollback": "Move an alias back to the previous version.",
            "models": "List registered models, aliases and history.",
            "generate": "Generate text with a model.",
        },
    ),
    **_entries(
        "Set up",
        "",
        {
            "cluster": "Start, stop or inspect a cluster.",
            "doctor": "Check the environment and its security.",
            "stages": "Describe the stages and their parameters.",
            "init": "Write the files of a new pipeline, stage or cluster.",
        },
    ),
}
ATTRIBUTES = {"list": "list_runs"}
"""Command objects that are not named like their command."""


class HeadwaterGroup(click.Group):
    """Group of all commands, with lazy imports and uniform error handling."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all command names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        from importlib import import_module

        module = import_module(entry.module)
        command: click.Command = getattr(module, ATTRIBUTES.get(cmd_name, cmd_name))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command.

        Raises:
            UserError: no such command; names the nearest one.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise UserError(f"no command {name!r}", remedy=did_you_mean(name, COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by section without importing them."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            lines = [(name, e.summary) for name, e in COMMANDS.items() if e.section == section]
            with formatter.section(section):
                formatter.write_dl(lines, col_max=12)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command and exit with its exit code."""
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
        except HeadwaterError as error:
            exit_handling.exit_with_error(error)
        except click.ClickException as error:
            exit_handling.exit_with_error(
                UserError(error.format_message(), remedy=exit_handling.usage_command(error))
            )
        except (click.Abort, KeyboardInterrupt):
            exit_handling.exit_interrupted()
        except Exception as error:
            exit_handling.exit_with_crash_log(error)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=HeadwaterGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater", message="headwater %(version)s")
def cli() -> None:
    """Reproducible training pipelines on Ray: data curation, pretraining, contrastive training,
    RLHF, evaluation and model registration.

    Start with `headwater run configs/quickstart.yaml`.
    """


def main() -> NoReturn:
    """Run the `headwater` command.

    Almost everything that a command imports lives until its end. Collecting it, and deallocating it
    at exit, would take a sixth of the time of `plan`.
    """
    gc.set_threshold(GC_THRESHOLD)
    try:
        cli.main(prog_name="headwater")
    finally:
        gc.freeze()
    raise AssertionError("cli.main ends the process")


if __name__ == "__main__":
    main()
