"""Pretraining windows in fine-tuning: which ones, on which rank, and the loss with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.context import Context
from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.token_dataset import TokenDataset
from stages.objectives.pretraining_mix import PretrainingMix, PretrainingWindows
from stages.objectives.supervised_finetuning import SFTObjective
from stages.sft import SftParams, SftTrain, conversation_encoder, encoded_splits
from stages.training.data_order import derive_seed, micro_batches
from stages.training.ranks.rank import Rank

LENGTH = 24


@pytest.fixture(scope="module")
def mix(world: Path) -> PretrainingMix:
    return PretrainingMix(world / "tokens", 0.25, LENGTH)


def windows(world: Path, mix: PretrainingMix, tokens: float = 500) -> PretrainingWindows:
    return PretrainingWindows(mix, tokens, ChatFormat.open(world / "policy").tokenizer, seed=5)


def test_windows_make_the_share_of_the_tokens(mix: PretrainingMix) -> None:
    for chats in (1000, 4321):
        count = mix.windows_per_step(chats)
        found = count * LENGTH / (count * LENGTH + chats)
        assert found == pytest.approx(0.25, abs=0.01)
    assert mix.windows_per_step(3) == 1
    assert mix.coefficient == pytest.approx(1 / 3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_step_has_the_same_windows_on_any_number_of_ranks(
    world: Path, mix: PretrainingMix, world_size: int
) -> None:
    made = windows(world, mix)
    assert made.count == 7
    stored = TokenDataset((mix.tokens,), LENGTH, derive_seed(5, 7)).train
    for step in (0, 3):
        parts = [list(made.batches(step, Rank(i, world_size), 2)) for i in range(world_size)]
        assert len({len(part) for part in parts}) == 1
        rows = [
            (*tokens.tolist(), targets[-1].item())
            for part in parts
            for batch in part
            for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True)
            if (targets != -100).all()
        ]
        numbers = range(7 * step, 7 * step + 7)
        assert sorted(rows) == sorted(tuple(np.array(stored[n]).tolist()) for n in numbers)
        learned = sum(int((b["targets"] != -100).sum()) for part in parts for b in part)
        assert learned == 7 * LENGTH


def opened(world: Path, work: Path, mix: PretrainingMix | None, rank: Rank) -> SFTObjective:
    params, folder = SftParams(), world / "policy"
    encoder = conversation_encoder(params, folder)
    splits = encoded_splits(encoder, (world / "conversations",), params, Context.local(work))
    made = SFTObjective(folder, *splits, mix=mix)
    made.modules = made.setup(rank, SECTION, 5)  # type: ignore[attr-defined]
    return made


SECTION = SftTrain(global_batch_size=12, micro_batch_size=2)


def test_the_gradient_is_that_of_both_means_however_it_is_divided(
    world: Path, mix: PretrainingMix, tmp_path: Path
) -> None:
    """Micro-batches of one and of two ranks against one batch of everything."""
    plain = opened(world, tmp_path / "plain", None, Rank())
    module = plain.modules["model"].module.double().eval()  # type: ignore[attr-defined]
    (chats,) = micro_batches(plain.train_samples, SftTrain(global_batch_size=12), Rank(), 1)
    batch = plain.collate(chats)
    own = windows(world, mix, 12 * float((plain.train_chats.lengths - 1).mean()))
    stored = TokenDataset((mix.tokens,), LENGTH, derive_seed(5, 7)).train
    rows = torch.tensor(
        np.array([stored[own.count + n] for n in range(own.count)]), dtype=torch.long
    )
    logits = module(rows[:, :-1])
    pretraining = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assistant = plain.loss(module, batch).total / plain.units(batch)  # type: ignore[union-attr]
    (assistant + pretraining / 3).backward()
    wanted = torch.cat([p.grad.flatten() for p in module.parameters()])
    for world_size in (1, 2):
        module.zero_grad()
        units: dict[str, float] = {}
        losses, parts = [], []
        for index in range(world_size):
            made = opened(world, tmp_path / f"{world_size}-{index}", mix, Rank(index, world_size))
            mine = micro_batches(made.train_samples, SECTION, made.rank, 1, length=made.length)
            parts += [(made, made.collate(samples)) for samples in mine]
            parts += [(made, further) for further in made.further_batches(1)]
        for made, part in parts:
            losses.append(made.loss(module, part))
            for name, count in made.units(part).items():  # type: ignore[union-attr]
                units[name] = units.get(name, 0) + count
        assert units == {"assistant": plain.units(batch), "pretraining": own.count * LENGTH}
        for loss in losses:
            answers, mixed = loss["assistant"], loss["pretraining"]  # type: ignore[index]
            total = answers.total / units["assistant"] + mixed.total / units["pretraining"] / 3
            total.backward()
        found = torch.cat([p.grad.flatten() for p in module.parameters()])
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_tokens_of_another_tokenizer_are_refused(world: Path, mix: PretrainingMix) -> None:
    class Other:
        digest = "other"
        vocab_size, path = 7, "elsewhere"

        def __len__(self) -> int:
            return 7

    with pytest.raises(InputError, match="tokenizer"):
        PretrainingWindows(mix, 500, Other(), seed=5)  # type: ignore[arg-type]
