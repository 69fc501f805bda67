"""`stages`: every stage and parameter, read from the parameter models and their docstrings.

A parameter's meaning is the string under it in the source, so what the reference says is what
stands beside the code; `--markdown` writes docs/stages.md.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel

from launch.ui import console
from launch.ui.options import json_option
from pipeline.fingerprint import format_value
from pipeline.stage import execution_fields, nested_sections

if TYPE_CHECKING:
    from pipeline.stage import Stage


WHY = {
    "identity": "decides what is made",
    "execution": "only how: never enters a fingerprint",
}
_PLAIN: dict[Any, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    type(None): "none",
}


@dataclass(frozen=True)
class Parameter:
    """One key that a pipeline file may set."""

    name: str
    """Dotted, as an override writes it."""
    type: str
    default: str
    """`required` if there is none."""
    meaning: str
    role: str
    """`identity`: decides what is made. `execution`: only how."""


@click.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--markdown", is_flag=True, help="As a page: docs/stages.md.")
@json_option
def stages(name: str | None, markdown: bool, as_json: bool) -> None:
    """List the stages, or describe one: what it takes, what it makes, every parameter."""
    from pipeline.stage_registry import all_stages, find_stage

    found = [find_stage(name)] if name else list(all_stages())
    if as_json:
        console.print_json([describe(stage) for stage in found])
    elif markdown:
        sys.stdout.write(page(found))
    elif name:
        _show_stage(found[0])
    else:
        _list(found)


def describe(stage: Stage) -> dict[str, Any]:
    """What `stages --json` prints of one."""
    return {
        "uses": stage.uses,
        "summary": stage.summary,
        "version": stage.version,
        "inputs": {name: str(declared) for name, declared in stage.inputs.items()},
        "output": stage.output,
        "parameters": [asdict(parameter) for parameter in parameters(stage.params)],
    }


def parameters(
    model: type[BaseModel], prefix: str = "", execution: bool = False
) -> list[Parameter]:
    """Every parameter of a model, those of its sections among them, own fields first."""
    inherited = {
        name for base in model.__mro__[1:] for name in getattr(base, "__annotations__", {})
    }
    names = sorted(model.model_fields, key=lambda name: name in inherited and not prefix)
    return [p for name in names for p in _parameter(model, name, prefix, execution)]


def _parameter(
    model: type[BaseModel], name: str, prefix: str, execution: bool
) -> Iterator[Parameter]:
    info = model.model_fields[name]
    execution = execution or name in execution_fields(model)
    inner = list(nested_sections(info.annotation))
    if len(inner) == 1 and get_origin(info.annotation) not in (tuple, list, dict):
        yield from parameters(inner[0], f"{prefix}{name}.", execution)
        return
    required = info.is_required()
    yield Parameter(
        f"{prefix}{name}",
        type_name(info.annotation),
        "required" if required else _default(info.get_default(call_default_factory=True)),
        meanings(model).get(name, info.description or ""),
        "execution" if execution else "identity",
    )


def _default(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_default(item) for item in value) + "]"
    if isinstance(value, BaseModel):
        return _default(value.model_dump())
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e6
    return str(int(value)) if whole else format_value(value)


def type_name(annotation: Any) -> str:
    """A type as a pipeline file's author thinks of it."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(str(value) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in inside)
    if origin in (tuple, list):
        return f"list of {_one_of(inside[0])}" if inside else "list"
    if origin is dict:
        return f"map of {_one_of(inside[1])}"
    if hasattr(annotation, "__metadata__"):
        return type_name(inside[0])
    return str(getattr(annotation, "__name__", annotation))


def _one_of(annotation: Any) -> str:
    name = type_name(annotation)
    return f"({name})" if " or " in name else name


@cache
def meanings(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field, in the model and in those it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and base.__module__ != "pydantic.main":
            found |= _strings(base)
    return found


def _strings(model: type[BaseModel]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(model)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, after in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def _list(found: list[Stage]) -> None:
    table = console.make_table(
        "uses", "takes", "makes", "what it does", flexible=["takes", "what it does"]
    )
    for stage in found:
        takes = ", ".join(f"{name}" for name in stage.inputs)
        table.add_row(stage.uses, takes, stage.output, stage.summary)
    console.print_table(table)
    console.suggest_command("headwater stages NAME", "describes one")


def _show_stage(stage: Stage) -> None:
    console.echo(f"{stage.uses} → {stage.output}   version {stage.version}", "bold")
    console.echo(stage.summary)
    if stage.inputs:
        table = console.make_table("input", "takes")
        console.print_table(
            console.add_rows(table, ((name, str(takes)) for name, takes in stage.inputs.items()))
        )
    titles = ("parameter", "type", "default", "meaning")
    for role in WHY:
        found = [p for p in parameters(stage.params) if p.role == role]
        if not found:
            continue
        console.echo()
        console.echo(f"{role}: {WHY[role]}", "dim")
        table = console.make_table(*titles, flexible=["type", "default", "meaning"])
        rows = ((p.name, p.type, p.default, p.meaning) for p in found)
        console.print_table(console.add_rows(table, rows))


def page(found: list[Stage]) -> str:
    """The reference as Markdown."""
    parts = [
        "# Stages",
        "",
        "Written by `headwater stages --markdown`. *Identity* parameters decide what is made and",
        "are part of the fingerprint; *execution* parameters (marked ·) only say how.",
    ]
    for stage in found:
        parts += ["", f"## {stage.uses}", "", stage.summary, ""]
        inputs = [f"`{name}`: {takes}" for name, takes in stage.inputs.items()] or ["nothing"]
        parts += [f"Takes {'; '.join(inputs)}. Makes {stage.output}. Version {stage.version}.", ""]
        parts += ["| parameter | type | default | meaning |", "|---|---|---|---|"]
        for p in parameters(stage.params):
            mark = " ·" if p.role == "execution" else ""
            cells = (f"`{p.name}`{mark}", p.type, p.default, p.meaning)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"
