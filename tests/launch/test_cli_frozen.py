"""The commands and options that scripts rely on: a change here is a change of contract."""

from __future__ import annotations

import click
import pytest

from launch.cli import COMMANDS, cli

OPTIONS = {
    "run": "CONFIG [KEY=VALUE]... --store --address --from --only --rerun --strict-code --dry-run",
    "plan": "CONFIG [KEY=VALUE]... --store --from --only --rerun --strict-code --json",
    "resume": "RUN [KEY=VALUE]... --from --store --address",
    "submit": "CONFIG [KEY=VALUE]... --cluster --detach --store",
    "cancel": "RUN --now --store",
    "list": "--all --store --json",
    "status": "RUN --watch --store --json",
    "logs": "RUN [STAGE] --rank --attempt --follow -f --store",
    "show": "RUN|ARTIFACT --store --json",
    "diff": "A B --store --json",
    "compare": "RUN[:STAGE]... --stage --metric --against --output -o --store --json",
    "report": "RUN --sync --store",
    "verify": "[RUN|ARTIFACT] --all --relocate --store --json",
    "gc": "--keep --delete --store --json",
    "promote": "RUN[:STAGE] --model --alias --require --dry-run --store --json",
    "rollback": "--model --alias --to --store --json",
    "models": "[MODEL] --history --store --json",
    "generate": "MODEL PROMPT --tokens --temperature --top-p --top-k --seed --system --history "
    "--store --json",
    "cluster": "",
    "cluster up": "[NAME] --store",
    "cluster down": "[NAME] --now --store",
    "cluster status": "[NAME] --store --json",
    "doctor": "--store --json",
    "stages": "[NAME] --markdown --json",
    "init": "[TEMPLATE] [FOLDER]",
}


def command(words: str) -> click.Command:
    found: click.Command | None = cli
    for word in words.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), word)
    assert found
    return found


def surface(found: click.Command) -> set[str]:
    words: set[str] = set()
    for parameter in found.params:
        named = isinstance(parameter, click.Option)
        words |= set(parameter.opts) if named else {str(parameter.metavar)}
    return words


def test_every_command_is_listed() -> None:
    assert {words.split()[0] for words in OPTIONS} == set(COMMANDS)


@pytest.mark.parametrize("words", OPTIONS)
def test_options_are_frozen(words: str) -> None:
    assert surface(command(words)) == set(OPTIONS[words].split())


@pytest.mark.parametrize("words", OPTIONS)
def test_commands_and_options_have_help(words: str) -> None:
    found = command(words)
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option) and parameter.name != "alias":
            assert parameter.help, f"{words} {parameter.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_short_sentences(name: str) -> None:
    """Check the form of the summaries, which the lazy group holds."""
    assert COMMANDS[name].summary.endswith(".")
    assert len(COMMANDS[name].summary) < 62
