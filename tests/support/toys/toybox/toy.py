"""Stages without machine learning that do, and suffer, what real ones do and suffer.

What goes wrong is said in EXECUTION fields: a disturbed run and an undisturbed one have the same
fingerprints, so that their artifacts can be compared.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import sys
import time
from pathlib import Path
from typing import Annotated

from pipeline.context import Context
from pipeline.errors import CorruptArtifact, InputError, Interrupted, StageStalled, WorkerDied
from pipeline.kind import Kind, register_kind
from pipeline.stage import EXECUTION, Inputs, Params, stage

register_kind(Kind("Number"))
register_kind(Kind("NumberModel", promotable=True))


class Count(Params):
    """Counts to `steps`, one file of scratch a step."""

    value: int = 0
    """What the count begins with."""
    steps: int = 4
    """How far it goes."""
    hold: Annotated[str, EXECUTION] = ""
    """After half of the steps it waits while this file exists."""
    deaf: Annotated[bool, EXECUTION] = False
    """Whether it looks away when asked to stop."""
    trouble: Annotated[str, EXECUTION] = ""
    """What happens after half of the steps."""
    troubled: Annotated[int, EXECUTION] = 1_000_000
    """How many attempts it happens to."""


@stage("toy.count", output="Number", version=1, metrics={"total": "sum of the numbers"})
def count(params: Count, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Count, and write the sum of what was counted."""
    done = len(list(ctx.scratch.glob("step-*")))
    ctx.log(f"begins at step {done} in process {os.getpid()}")
    for step in range(done, params.steps):
        if step == params.steps // 2:
            trouble(params, out, ctx)
        ctx.scratch.joinpath(f"step-{step}").write_text(str(params.value + step))
        ctx.metrics(step, {"value": params.value + step})
        ctx.progress(step + 1, params.steps, "steps")
        ctx.resume_point(step + 1, params.steps)
    if params.trouble == "nothing":
        return
    total = sum(int(path.read_text()) for path in ctx.scratch.glob("step-*"))
    out.joinpath("number.txt").write_text(f"{total}\n")
    ctx.result(total=total)


@stage("toy.model", output="NumberModel", version=1)
def model(params: Params, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Make what may be promoted, with a metric that is not declared."""
    out.joinpath("number.txt").write_text("1\n")
    ctx.result(total=1)


class Add(Params):
    """Adds what it is given."""


@stage("toy.add", inputs={"numbers": "Number*", "base": "Number?"}, output="Number", version=1)
def add(params: Add, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Add numbers, and a base if there is one."""
    folders = inputs.paths("numbers") + inputs.paths("base")
    total = sum(int(folder.joinpath("number.txt").read_text()) for folder in folders)
    out.joinpath("number.txt").write_text(f"{total}\n")
    ctx.result(total=total)


class Read(Params):
    """Reads a number from outside the store."""

    source: str
    """The file that it stands in."""
    edited: Annotated[str, EXECUTION] = ""
    """Text that another program writes into the file just before it is read."""

    def externals(self) -> dict[str, str]:
        try:
            return {self.source: hashlib.sha256(Path(self.source).read_bytes()).hexdigest()}
        except OSError:
            raise InputError(f"cannot read {self.source}", remedy="give a file") from None


@stage("toy.read", inputs={"after": "Number?"}, output="Number", version=1)
def read(params: Read, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Take a number over."""
    if params.edited:
        Path(params.source).write_text(params.edited)
    total = int(Path(params.source).read_text())
    ctx.scratch.joinpath("read").write_text(str(total))
    ctx.log(f"planned as {ctx.externals.get(params.source)}")
    out.joinpath("number.txt").write_text(f"{total}\n")
    ctx.result(total=total)


class Fan(Params):
    """Counts in processes of its own."""

    parts: int = 3
    """How many there are."""
    trouble: Annotated[str, EXECUTION] = ""
    """What happens in the last of them."""
    spot: Annotated[bool, EXECUTION] = False
    """Whether the first attempt's parts run, and stay, on a machine with the resource `spot`."""


@stage("toy.fan", output="Number", version=1)
def fan(params: Fan, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Sum what tasks that take a CPU each give back."""
    import ray

    troubles = [""] * (params.parts - 1) + [params.trouble]
    task = ray.remote(num_cpus=1, max_retries=0)(part)
    if params.spot and ctx.attempt == 1:
        mark = str(ctx.attempt_dir / "holds")
        ray.get(ray.remote(num_cpus=0, max_retries=0, resources={"spot": 1})(stay).remote(mark))
    total = sum(ray.get([task.remote(n, trouble) for n, trouble in enumerate(troubles)]))
    out.joinpath("number.txt").write_text(f"{total}\n")


def part(number: int, trouble: str) -> int:
    """A share of the work of `fan`."""
    if trouble == "user":
        raise InputError("a part is odd", where="part", remedy="give an even one")
    if trouble == "die":
        os.kill(os.getpid(), 9)
    return number


def stay(mark: str) -> None:
    """Work that ends only with its machine."""
    Path(mark).write_text(str(os.getpid()))
    time.sleep(600)


def trouble(params: Count, out: Path, ctx: Context) -> None:
    """Wait where the test wants it to, and then suffer."""
    ctx.attempt_dir.joinpath("holds").write_text(str(os.getpid()))
    while params.hold and Path(params.hold).exists():
        if not params.deaf:
            ctx.check_cancelled()
        time.sleep(0.01)
    if ctx.attempt > params.troubled:
        return
    match params.trouble:
        case "user":
            raise InputError("the number is odd", where="toy", remedy="give an even one")
        case "raise":
            raise ValueError("seven is\nnot a number")
        case "exit":
            sys.exit(3)
        case "worker":
            raise WorkerDied("rank 1 vanished", remedy="look at its log")
        case "stuck":
            raise StageStalled("no step for 60 s")
        case "stray":
            raise Interrupted("a stray signal")
        case "damaged":
            raise CorruptArtifact("a shard of its own is damaged")
        case "memory":
            raise MemoryError
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "number.txt"))
        case "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            out.joinpath("number.txt").write_bytes(bytes(8192))
        case "print":
            print("printed \x1b[31mred")
            os.system("echo from a child")
        case "die":
            os.write(2, b"last words\n")
            os.kill(os.getpid(), 9)
