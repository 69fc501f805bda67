"""`generate`: targets that it refuses, and chats with a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import toy_alignment
from command_calls import Call

from pipeline.execution.run import Run
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.generation.sampling import SamplingParams, sample
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import load_language_model, save_language_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "no model 'nosuch'"),
        ("nosuch@champion", "no model 'nosuch' is registered"),
        ("latest:clean", "latest:clean holds Documents, not a model"),
        ("latest:gtp", "did you mean 'gpt'?"),
        ("latest", "no model 'latest'"),
    ],
)
def test_generate_needs_a_model(run: Run, call: Call, name: str, message: str) -> None:
    assert message in call("generate", name, "hello", code=2).stderr


def test_generate_needs_tokens(run: Run, call: Call) -> None:
    assert (
        "must be at least 1" in call("generate", "latest:gpt", "x", "--tokens", "0", code=2).stderr
    )


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    toy_alignment.write_tokenizer(folder / "tokenizer")
    torch.manual_seed(1)
    model = GPT(GPTConfig(340, 60, num_layers=1, hidden_size=16, num_heads=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_language_model(model, folder / "model", folder / "tokenizer", chat=True)
    return folder / "model"


def test_system_history_and_sampling_options_reach_the_model(
    chat_model: Path, call: Call, tmp_path: Path
) -> None:
    history = tmp_path / "history.jsonl"
    rows = [{"role": "user", "content": "the owl?"}, {"role": "assistant", "content": "sings"}]
    history.write_text("\n".join(map(json.dumps, rows)))
    words = ["generate", str(chat_model), "and the cat?", "--tokens", "9", "--seed", "3"]
    words += ["--system", "be brief", "--history", str(history), "--top-k", "5", "--top-p", "0.9"]
    found = json.loads(call(*words, "--json").stdout)
    chat = ChatFormat.open(chat_model)
    messages = [
        Message("system", "be brief"),
        Message("user", "the owl?"),
        Message("assistant", "sings"),
        Message("user", "and the cat?"),
    ]
    drawn = sample(
        load_language_model(chat_model), [chat.encode_prompt(messages)],
        SamplingParams(9, 0.7, 5, 0.9), end_ids=chat.stop_ids, pad_id=0, seed=3,
    )  # fmt: skip
    assert found["text"] == chat.decode(drawn.ids(0, eos=True))
    plain = call(*words)
    assert plain.stdout.rstrip("\n") == found["text"].rstrip("\n")
    assert "ended at" in plain.stderr


def test_two_messages_of_the_system_are_refused(
    chat_model: Path, call: Call, tmp_path: Path
) -> None:
    history = tmp_path / "history.json"
    history.write_text('[{"role": "system", "content": "a"}]')
    words = ["generate", str(chat_model), "b", "--system", "c", "--history", str(history)]
    assert "has a message of the system" in call(*words, code=2).stderr
    history.write_text("[}")
    words = ["generate", str(chat_model), "b", "--history", str(history)]
    assert "history.json:1: not JSON" in call(*words, code=2).stderr


@pytest.mark.parametrize("option", [("--top-p", "0"), ("--top-k", "-1"), ("--temperature", "-1")])
def test_sampling_options_out_of_range_are_refused(
    chat_model: Path, call: Call, option: tuple[str, str]
) -> None:
    assert "top_" in call("generate", str(chat_model), "b", *option, code=2).stderr
