"""Scores the items of tasks with a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import InputError
from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.evaluation.loglikelihood import (
    CONTEXTS_PER_BATCH,
    BatchEncoder,
    LoglikelihoodRequest,
    encode_requests,
    score_requests,
    truncate_left,
)
from stages.evaluation.task_metrics import ItemResult
from stages.evaluation.tasks import Item, Task
from stages.generation.sampling import GenerativeModel
from stages.models.model_io import load_language_model

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank

ITEMS_PER_CHUNK = 8 * CONTEXTS_PER_BATCH


@dataclass(frozen=True)
class TaskRunner:
    """A model with its tokenizer and the scoring options."""

    model: GenerativeModel
    tokenizer: BatchEncoder
    context_length: int
    document_start_id: int
    """Token that documents start after."""
    pad_id: int
    seed: int = 0
    """Random seed of few-shot examples."""
    pmi: bool = False
    """True if choices are also scored without their context."""
    add_bos_token: bool = False
    """True if every context starts with `document_start_id`; otherwise only empty contexts do."""
    batch_size: int = CONTEXTS_PER_BATCH
    device: torch.device | str = "cpu"
    heartbeat: Callable[[], None] = lambda: None

    def run(self, task: Task, items: Sequence[Item]) -> Iterator[ItemResult]:
        """Yield the result of each item of a task.

        Raises:
            InputError: a choice is longer than the context of the model.
        """
        for start in range(0, len(items), ITEMS_PER_CHUNK):
            yield from self._run_chunk(task, items[start : start + ITEMS_PER_CHUNK])

    def _run_chunk(self, task: Task, items: Sequence[Item]) -> Iterator[ItemResult]:
        examples = [task.fewshot_examples(item, task.num_fewshot, self.seed) for item in items]
        prompts = [task.prompt(item, shots) for item, shots in zip(items, examples, strict=True)]
        pairs = [
            (prompt, item.target_delimiter + choice)
            for prompt, item in zip(prompts, items, strict=True)
            for choice in item.choices
        ]
        whole = encode_requests(
            self.tokenizer, pairs, start_id=self.document_start_id, add_bos=self.add_bos_token
        )
        owners = [item for item in items for _ in item.choices]
        fitting = [self._truncate(task, own, one) for own, one in zip(owners, whole, strict=True)]
        unconditional = [
            LoglikelihoodRequest((self.document_start_id,), one.continuation)
            for one in (whole if self.pmi else [])
        ]
        scores = score_requests(
            self.model, [*fitting, *unconditional], pad_id=self.pad_id, batch_size=self.batch_size,
            device=self.device, heartbeat=self.heartbeat,
        )  # fmt: skip
        truncated = [len(a.context) < len(b.context) for a, b in zip(fitting, whole, strict=True)]
        at = 0
        for item in items:
            own = slice(at, at := at + len(item.choices))
            without_context = tuple(one.log_prob for one in scores[len(whole) :][own])
            yield ItemResult(item, tuple(scores[own]), without_context, any(truncated[own]))

    def _truncate(
        self, task: Task, item: Item, request: LoglikelihoodRequest
    ) -> LoglikelihoodRequest:
        try:
            return truncate_left(request, self.context_length)
        except InputError as error:
            error.where = f"{task.path}:{item.line}"
            raise


def run_tasks(
    rank: Rank,
    tasks: Sequence[Task],
    folder: Path,
    options: dict[str, Any],
    cancel_file: Path | None = None,
) -> dict[str, list[ItemResult]]:
    """Score this rank's items of every task (one in every `rank.world`) with a model folder.

    Args:
        rank: this process.
        tasks: with their few-shot numbers and limits.
        folder: model folder with a tokenizer.
        options: seed, pmi, add_bos_token and batch_size of the `TaskRunner`.
        cancel_file: file whose existence requests cancellation.

    Raises:
        InputError: a choice is longer than the context of the model.
        Interrupted: cancellation was requested.
    """
    model, tokenizer = load_language_model(folder).to(rank.device), open_tokenizer(folder)
    runner = TaskRunner(
        model, tokenizer, model.config.context_length, tokenizer.document_start_id,
        tokenizer.padding_id, **options, device=rank.device,
        heartbeat=CancellationPoint(rank, cancel_file),
    )  # fmt: skip
    total, done = sum(len(task.scored_items) for task in tasks), 0
    results: dict[str, list[ItemResult]] = {}
    for task in tasks:
        results[task.name] = []
        for result in runner.run(task, task.scored_items[rank.index :: rank.world]):
            results[task.name].append(result)
            done += 1
            if rank.ctx:
                rank.ctx.progress(min(total, done * rank.world), total, "items")
    return results
