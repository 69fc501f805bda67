"""Packed rows: loss and gradients of conversations alone, in any order; a leak is found."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.chat.chat_format import EncodedChat
from stages.chat.packed_chats import ChatRow, ChatRows, collate_chats, num_inputs
from stages.models.language_model import LanguageModel
from stages.models.registry import build_model, families

CONTEXT, VOCABULARY, PAD = 48, 60, 0


def chats(count: int, seed: int = 0) -> list[EncodedChat]:
    """Return conversations of random ids, the second half of each learned."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        size = int(rng.integers(3, 20))
        mask = np.arange(size) >= size // 2
        made.append(EncodedChat(rng.integers(1, VOCABULARY, size), mask))
    return made


def lengths(of: list[EncodedChat]) -> np.ndarray:
    return np.array([len(chat) for chat in of], np.int64)


def model_of(family: str) -> LanguageModel:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": CONTEXT}
    experts = {"experts": {"num_experts": 4, "moe_every": 1, "capacity_factor": None}}
    section = families()[family].section.model_validate(
        {**sizes, **(experts if family == "switch" else {})}
    )
    torch.manual_seed(1)
    model = build_model(section.config("tiny", VOCABULARY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def gradients(model: LanguageModel, batches: list[dict[str, Tensor]]) -> tuple[float, Tensor]:
    """Return the mean loss per learned token, and its gradient, over all batches."""
    model.zero_grad()
    units = sum(int((batch["targets"] >= 0).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        arguments = {f"{name}_BT": value for name, value in batch.items() if name != "tokens"}
        loss = model(batch["tokens"], **arguments) / units
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def alone(of: list[EncodedChat]) -> list[dict[str, Tensor]]:
    return [collate_chats([(chat,)], PAD) for chat in of]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "switch"])
def test_packed_is_unpacked_in_any_order(family: str) -> None:
    made, model = chats(12), model_of(family)
    wanted, wanted_gradient = gradients(model, alone(made))
    for seed in range(3):
        shuffled = random.Random(seed).sample(made, len(made))
        rows = ChatRows(shuffled, lengths(shuffled), CONTEXT)
        assert len(rows) < len(made)
        found, gradient = gradients(model, [collate_chats(list(rows), PAD)])
        assert found == pytest.approx(wanted, rel=1e-5)
        assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_one_token_that_leaks_is_found(family: str) -> None:
    """The last prompt token of a conversation counts as one of the conversation after it."""
    made, model = chats(2), model_of(family)
    wanted, wanted_gradient = gradients(model, alone(made))
    batch = collate_chats([tuple(made)], PAD)
    batch["segments"][0, len(made[0]) - 2] = 1
    found, gradient = gradients(model, [batch])
    assert found != pytest.approx(wanted, rel=1e-5)
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) > 1e-5


@pytest.mark.parametrize("missing", ["segments", "positions"])
def test_rows_need_their_segments_and_positions(missing: str) -> None:
    made, model = chats(2), model_of("gpt2")
    wanted, _ = gradients(model, alone(made))
    batch = collate_chats([tuple(made)], PAD)
    del batch[missing]
    assert gradients(model, [batch])[0] != pytest.approx(wanted, rel=1e-5)


def test_every_conversation_is_in_one_row() -> None:
    made = chats(50)
    rows = ChatRows(made, lengths(made), CONTEXT)
    members = [chat for row in rows for chat in row]
    assert sorted(map(id, members)) == sorted(map(id, made))
    assert all(num_inputs(row) <= CONTEXT for row in rows)
    filled = sum(len(chat) - 1 for chat in made)
    assert rows.padding == pytest.approx(1 - filled / (len(rows) * CONTEXT))
    assert len(rows) == -(-filled // CONTEXT)


def test_without_packing_each_has_a_row() -> None:
    made = chats(5)
    rows = ChatRows(made, lengths(made))
    assert [row[0] for row in rows] == made
    assert {len(row) for row in rows} == {1}
    assert rows.padding == 0


def test_rows_of_nothing_are_none() -> None:
    for room in (None, CONTEXT):
        rows = ChatRows([], lengths([]), room)
        assert len(rows) == 0
        assert rows.padding == 0


def test_a_batch_holds_inputs_targets_and_places() -> None:
    first = EncodedChat(np.array([5, 6, 7, 8]), np.array([False, False, True, True]))
    second = EncodedChat(np.array([9, 4, 3]), np.array([False, True, False]))
    rows: list[ChatRow] = [(first, second), (second,)]
    batch = {name: value.tolist() for name, value in collate_chats(rows, PAD).items()}
    assert batch == {
        "tokens": [[5, 6, 7, 9, 4], [9, 4, 0, 0, 0]],
        "targets": [[-100, 7, 8, 4, -100], [4, -100, -100, -100, -100]],
        "token_mask": [[True] * 5, [True, True, False, False, False]],
        "segments": [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]],
        "positions": [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]],
    }
    assert "segments" not in collate_chats([(first,), (second,)], PAD)
