"""`headwater`: one command a line of the design, each loaded only when it is called.

`--help`, `plan`, `list` and `status` must answer at once, so nothing here imports a command's
module before somebody asks for that command, and no module imports torch, ray or mlflow on top.

Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 a gate refused, 130 interrupted.
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

SELDOM = 200_000  # new objects between two searches for garbage

# Pydantic would look through every installed package for plugins of its own: we use none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


class Entry(NamedTuple):
    """Where a command lives and what it does."""

    module: str
    section: str
    summary: str
    attribute: str = ""


COMMANDS = {
    "run": Entry("launch.commands.run", "Run", "Run a pipeline here or on a Ray cluster."),
    "plan": Entry("launch.commands.plan", "Run", "Say what would run and why, and what it costs."),
    "resume": Entry("launch.commands.resume", "Run", "Go on where a run stopped."),
    "submit": Entry("launch.commands.submit", "Run", "Ship a run to a cluster as one job."),
    "cancel": Entry("launch.commands.cancel", "Run", "Stop a run at its next safe point."),
    "list": Entry("launch.commands.list", "Look", "List the runs of a store.", "list_runs"),
    "status": Entry("launch.commands.status", "Look", "Show where a run stands."),
    "logs": Entry("launch.commands.logs", "Look", "Print the logs of a run or of one stage."),
    "show": Entry(
        "launch.commands.show", "Look", "Show what a run made, or where an artifact is from."
    ),
    "diff": Entry("launch.commands.diff", "Look", "Say how two runs or two artifacts differ."),
    "compare": Entry(
        "launch.commands.compare", "Look", "Show losses of runs against what they cost."
    ),
    "report": Entry("launch.commands.report", "Look", "Write the HTML page of a run."),
    "verify": Entry("launch.commands.verify", "Keep", "Check every byte of artifacts."),
    "gc": Entry("launch.commands.gc", "Keep", "Find (and free) the space that nothing needs."),
    "promote": Entry(
        "launch.commands.registry.promote", "Models", "Register a model behind gates."
    ),
    "rollback": Entry(
        "launch.commands.registry.rollback", "Models", "Move an alias back to the version before."
    ),
    "models": Entry(
        "launch.commands.registry.models", "Models", "List registered models, aliases and history."
    ),
    "generate": Entry("launch.commands.registry.generate", "Models", "Sample text from a model."),
    "cluster": Entry("launch.commands.cluster", "Machines", "Start, stop or look at a cluster."),
    "doctor": Entry(
        "launch.commands.doctor", "Machines", "Check the environment and its security."
    ),
    "stages": Entry("launch.commands.stages", "Learn", "Describe the stages and their parameters."),
    "init": Entry(
        "launch.commands.init", "Learn", "Write the files of a new pipeline, stage or cluster."
    ),
}


class Headwater(click.Group):
    """The group of all commands: lazy to load, one way of failing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the one command that is asked for."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        from importlib import import_module

        command: click.Command = getattr(
            import_module(entry.module), entry.attribute or cmd_name.replace("-", "_")
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise UserError(f"there is no command {name!r}", remedy=did_you_mean(name, COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, without loading any."""
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            lines = [(name, e.summary) for name, e in COMMANDS.items() if e.section == section]
            with formatter.section(section):
                formatter.write_dl(lines, col_max=12)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run, and end the process with the exit code of what happened."""
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


@click.group(cls=Headwater, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headwater", message="headwater %(version)s")
def cli() -> None:
    """From a raw corpus to an aligned, registered model on a Ray cluster."""


def main() -> NoReturn:
    """The entry point of the `headwater` command.

    Nearly all that a command imports stays until its end. To look for garbage in it, and to take
    it apart at last, would cost a sixth of what `plan` does.
    """
    gc.set_threshold(SELDOM)
    try:
        cli.main(prog_name="headwater")
    finally:
        gc.freeze()
    raise AssertionError("cli.main ends the process")


if __name__ == "__main__":
    main()
