"""Warnings of a plan that need more than a pipeline file: the sizes of corpora, the local GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SpecError

if TYPE_CHECKING:
    from pipeline.execution.plan import InputSource, Plan, PlannedStage
    from pipeline.spec.pipeline_spec import Node, Spec
    from pipeline.storage.store import Store

MAX_EPOCHS = 4
"""Epochs up to which repeated text is about as good as new text (Muennighoff et al. 2023)."""
CHARACTERS_PER_TOKEN = 4.0
"""Assumed of documents that are not packed yet."""
_OTHER_GPUS = ("/dev/kfd", "/dev/dxg")  # ROCm, WSL: their number is not known here


def add_warnings(plan: Plan, found: Mapping[str, Sequence[str]]) -> Plan:
    """Return the plan with further warnings, by name of the stage."""
    stages = [
        replace(stage, warnings=[*stage.warnings, *found.get(stage.name, ())])
        for stage in plan.stages
    ]
    return replace(plan, stages=stages)


def epoch_warnings(name: str, plan: Plan, spec: Spec, store: Store) -> list[str]:
    """Return the corpora that a stage would read more than `MAX_EPOCHS` times.

    The size of tokens is exact if they are in the store, and estimated from their documents if only
    those are.
    """
    stages = {stage.name: stage for stage in plan.stages}
    stage, epochs_over = stages.get(name), getattr(spec.nodes[name].params, "epochs_over", None)
    if stage is None or stage.action not in ("run", "resume") or epochs_over is None:
        return []
    sources = stage.inputs.get("tokens", [])
    sizes = [_corpus_size(source, stages, store) for source in sources]
    if not all(size for size, _ in sizes):
        return []
    epochs = epochs_over([size for size, _ in sizes])
    return [
        f"{'' if exact else 'about '}{passes:.1f} epochs over the {size:,.0f} tokens of "
        f"{source.get('stage') or source['artifact']}; above {MAX_EPOCHS}, repeated text adds "
        f"little: lower train.steps, or add text"
        for source, (size, exact), passes in zip(sources, sizes, epochs, strict=False)
        if passes > MAX_EPOCHS
    ]


def _corpus_size(
    source: InputSource, stages: Mapping[str, PlannedStage], store: Store
) -> tuple[float, bool]:
    """Return the tokens of an input, 0 if unknown, and whether they were counted."""
    found = store.latest_readable(source["uses"], source["fingerprint"])
    if found:
        return found.metrics.get("train_tokens") or 0.0, True
    producer = stages.get(source.get("stage", ""))
    documents = producer.inputs.get("documents", []) if producer else []
    texts = [store.latest_readable(d["uses"], d["fingerprint"]) for d in documents]
    characters = sum((text.metrics.get("characters") or 0.0) for text in texts if text)
    return characters / CHARACTERS_PER_TOKEN, False


def local_gpus() -> int | None:
    """Return the number of NVIDIA GPUs that are visible here; None if it is not known."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [part for part in visible.split(",") if part.strip() not in ("", "-1")]
        return min(devices, len(named))
    if not devices and any(Path(path).exists() for path in _OTHER_GPUS):
        return None
    return devices


def require_local_gpus(plan: Plan, spec: Spec) -> None:
    """Check that this machine has the GPUs of the stages that would run.

    Raises:
        SpecError: all stages that need more.
    """
    from pipeline.execution.resources import Resources, check_placement

    if (gpus := local_gpus()) is not None:
        check_placement(_gpu_nodes(plan, spec), [Resources(math.inf, gpus)])


def gpu_warnings(plan: Plan, spec: Spec) -> dict[str, list[str]]:
    """Return what `require_local_gpus` would refuse, by stage; a stage that declares its `hardware`
    is planned for another machine."""
    try:
        require_local_gpus(plan, spec)
    except SpecError as error:
        declared = {
            node.name
            for node in _gpu_nodes(plan, spec)
            if getattr(getattr(node.params, "hardware", None), "device", None)
        }
        found: dict[str, list[str]] = {}
        for problem in error.problems:
            name = problem.key.partition(".workers")[0]
            if name not in declared:
                text = f"{problem.message} (this machine): {problem.remedy}"
                found.setdefault(name, []).append(text)
        return found
    return {}


def _gpu_nodes(plan: Plan, spec: Spec) -> list[Node]:
    working = [stage.name for stage in plan.stages if stage.action in ("run", "resume")]
    return [spec.nodes[name] for name in working if spec.nodes[name].params.workers.gpus]
