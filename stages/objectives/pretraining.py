"""Base of pretraining objectives: packed tokens, an initial model, bits per byte, export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.atomic_io import read_json
from pipeline.errors import InputError
from stages.objectives.objective_registry import PretrainingTask
from stages.training.objective import Batch, Metrics, Trainable
from stages.training.supervised import LanguageObjective

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.panels import Panel
    from stages.data.token_dataset import TokenDataset
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection

PROMPTS = ("The", "This function returns", "class ", "To install", "Example::", "")


@dataclass
class PretrainingObjective(PretrainingTask, LanguageObjective):
    """A language model on samples of packed tokens; a subclass adds `collate` and `loss`."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Map the tokens, and build the model with random or loaded weights."""
        import torch

        from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
        from stages.models.initialization import initial_model
        from stages.models.mup import lr_multipliers
        from stages.training.optim.optimizer_registry import find_optimizer

        corpus = self.corpus
        self.train_samples, self.eval_dataset = corpus.train, corpus.eval
        self.setup_metrics = corpus.packing_metrics
        self.flops_per_token = float(self.config.flops_per_token)
        self.tokenizer = open_tokenizer(self.tokenizer_folder)
        self.bytes_per_token = torch.tensor(self.tokenizer.byte_counts, device=rank.device)
        model = initial_model(self.config, self.init_from)
        model.activation_checkpointing = self.activation_checkpointing
        if self.compile:
            from stages.training.torch_compile import compile_blocks

            compile_blocks(model, rank.device)
        matrix_lr = find_optimizer(self.settings.optimizer).mup_matrix_lr
        return {"model": Trainable(model, lr_multipliers=lr_multipliers(model, matrix_lr))}

    def num_target_bytes(self, batch: Batch) -> Tensor:
        """Return the bytes of text that the targets of a batch stand for: the metric `bytes`."""
        targets = batch["targets"]
        total: Tensor = self.bytes_per_token[targets[targets >= 0]].sum()
        return total

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return loss, perplexity and, of an objective that reports `bytes`, bits per byte, which
        compare across tokenizers."""
        found = dict(super().evaluate(engines, step))
        if bytes_per_token := found.pop("eval_bytes", 0.0):
            found["eval_bits_per_byte"] = found["eval_loss"] / math.log(2) / bytes_per_token
        return found

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder."""
        from stages.models.hf_io import SpecialIds
        from stages.models.model_io import save_language_model

        model: Any = engines["model"].module
        own = self.tokenizer
        ids = SpecialIds(own.pad_id, own.bos_id, own.eos_id)
        save_language_model(model, out, self.tokenizer_folder, card=self.card, ids=ids)


def num_embeddings(tokens: Path, init_from: Path | None) -> int:
    """Return the vocabulary size of the model: that of the tokens, or of the model to start from,
    because models of the Hugging Face Hub may have spare rows.

    Raises:
        InputError: the tokens use more ids than that model has.
    """
    from stages.data.token_store import TokenStore

    used = TokenStore(tokens).vocab_size
    if init_from is None:
        return used
    config: dict[str, Any] = read_json(init_from / "config.json", {})
    known = config.get("vocab_size", used)
    if used > known:
        raise InputError(
            f"the tokens use {used} ids, and the model to start from has {known}",
            where=str(init_from),
            remedy="pack the documents with the tokenizer of that model",
        )
    return int(known)


def require_tokenizers(
    corpus: TokenDataset,
    tokenizer: Path,
    init_from: Path | None,
    special_tokens: Sequence[str] = (),
) -> None:
    """Check that all tokens were packed with the tokenizer, which is that of the model to start
    from, and that it has the special tokens.

    Raises:
        InputError: some were packed with another, or a special token is missing.
    """
    from stages.data.tokenizers.huggingface_tokenizer import has_tokenizer, open_tokenizer

    opened = open_tokenizer(tokenizer)
    corpus.require_tokenizer(opened)
    if missing := [token for token in special_tokens if opened.special_token_id(token) is None]:
        raise InputError(
            f"the tokenizer has no special token {', '.join(missing)}, which the objective needs",
            where=str(tokenizer),
            remedy="train a tokenizer with it, or select another objective",
        )
    if init_from and has_tokenizer(init_from):
        corpus.require_tokenizer(open_tokenizer(init_from))


def mixture_table(
    corpus: TokenDataset, train: TrainSection, names: Sequence[str]
) -> tuple[Panel, list[float]]:
    """Return a table of the samples that the run takes per store, and the epochs over each."""
    from pipeline import panels

    mixture, samples = corpus.mixture, train.total_samples
    taken = (mixture.schedule.samples_per_source(samples) * corpus.length).tolist()
    sizes, epochs = [store.tokens for store in corpus.stores()], list(mixture.epochs_after(samples))
    shares = [round(100 * share, 3) for share in mixture.proportions]
    rows = list(zip(names, shares, sizes, taken, [round(e, 3) for e in epochs], strict=True))
    columns = ("store", "% of samples", "tokens in store", "tokens sampled", "epochs")
    return panels.table("Mixture", columns, rows), epochs


def continuations(
    rank: Rank, folder: Path, prompts: Sequence[str], seed: int
) -> list[dict[str, str]]:
    """Sample from the exported model after each prompt, at the beginning of a document. Ranks other
    than 0 return nothing, and so does a device that the whole model does not fit."""
    if not rank.is_main:
        return []
    import torch

    from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
    from stages.generation.sampling import SamplingParams, sample
    from stages.models.model_io import load_language_model

    try:
        model, tokenizer = load_language_model(folder).to(rank.device), open_tokenizer(folder)
    except torch.OutOfMemoryError:  # a model that several devices held together: the training
        return []  # must not be lost for want of examples
    ids = [[tokenizer.document_start_id, *tokenizer.encode(prompt)] for prompt in prompts]
    room = model.config.context_length - max(map(len, ids))
    if room < 1:
        return []
    decoding = SamplingParams(min(80, room), temperature=0.8, top_p=0.95)
    drawn = sample(
        model, ids, decoding, end_ids=[tokenizer.eos_id], pad_id=tokenizer.padding_id, seed=seed,
        device=rank.device,
    )  # fmt: skip
    return [
        {"prompt": prompt or "(nothing)", "text": tokenizer.decode(drawn.ids(row))}
        for row, prompt in enumerate(prompts)
    ]
