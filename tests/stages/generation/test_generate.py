"""What `headwater generate` calls."""

import json
from types import SimpleNamespace

import pytest
import torch
from hf_model_folders import write_model

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.sentencepiece_tokenizer import BOS, EOS, PAD, SYSTEM, USER, Tokenizer
from stages.generation.generate import generate_text
from stages.generation.history import History, read_history
from stages.generation.sampling import SamplingParams, sample
from stages.models.model_io import load_language_model, save_language_model


def greedy(world, ids, count):
    model = load_language_model(world / "policy")
    drawn = sample(model, [ids], SamplingParams(count, 0.0), end_ids=[EOS], pad_id=PAD)
    return Tokenizer(world / "policy").decode(drawn.ids(0))


def test_a_chat_model_gets_the_chat_format(world):
    ids = ChatFormat.open(world / "policy").encode_prompt([Message("user", "and the owl?")])
    text = generate_text(world / "policy", "and the owl?", 12, temperature=0).text
    assert text == greedy(world, ids, 12)


def test_a_base_model_continues_the_prompt(world, tmp_path):
    save_language_model(load_language_model(world / "policy"), tmp_path, world / "tokenizer")
    ids = [EOS, *Tokenizer(tmp_path).encode("the owl")]
    assert generate_text(tmp_path, "the owl", 12, temperature=0).text == greedy(world, ids, 12)


def test_samples_depend_on_the_seed(world):
    first, again, other = (
        generate_text(world / "policy", "and the owl?", 12, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_response_is_limited_by_the_context(world):
    assert generate_text(world / "policy", "tell me of the owl", 10_000, temperature=0).text


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("the owl " * 40, {}, "fills the context of 40"),
        ("the owl", {"temperature": -1}, "parameters out of range"),
        ("the owl", {"top_p": 0}, "top_p must be in"),
    ],
)
def test_invalid_options_are_rejected(world, prompt, options, message):
    with pytest.raises(InputError, match=message):
        generate_text(world / "policy", prompt, **options)
    assert torch.is_grad_enabled()


class Scripted:
    """A model that draws given ids one after another."""

    def __init__(self, ids):
        self.ids, self.config = list(ids), SimpleNamespace(context_length=64)

    def cache(self, batch, capacity):
        return SimpleNamespace()

    def __call__(self, tokens_BT, **_):
        logits = torch.full((1, 1, 400), -torch.inf)
        logits[..., self.ids.pop(0)] = 0.0
        return logits[:, 0] if tokens_BT.shape[1] > 1 else logits


@pytest.mark.parametrize(
    ("control", "name"), [(USER, "<|user|>"), (EOS, "</s>"), (SYSTEM, "<|system|>"), (BOS, "<s>")]
)
def test_a_role_token_ends_a_response_and_is_named(world, monkeypatch, control, name):
    said = Tokenizer(world / "policy").encode("the owl sings")
    model = Scripted([*said, control, *said])
    monkeypatch.setattr("stages.generation.generate.load_language_model", lambda _: model)
    found = generate_text(world / "policy", "and the owl?", 40, temperature=0)
    assert (found.text, found.ended_by) == ("the owl sings", name)
    assert len(model.ids) == len(said)
    cut = Scripted(said * 9)
    monkeypatch.setattr("stages.generation.generate.load_language_model", lambda _: cut)
    assert generate_text(world / "policy", "and the owl?", len(said)).ended_by is None


def test_a_control_token_that_the_template_never_writes_is_not_hidden(world, monkeypatch):
    said = Tokenizer(world / "policy").encode("the owl sings")
    model = Scripted([*said, 9, *said, EOS])
    monkeypatch.setattr("stages.generation.generate.load_language_model", lambda _: model)
    found = generate_text(world / "policy", "and the owl?", 40, temperature=0)
    assert (found.text, found.ended_by) == ("the owl sings", "<|reserved_2|>")


def test_the_history_comes_before_the_prompt(world, tmp_path):
    turns = [("system", "the"), ("user", "the owl?"), ("assistant", "it runs")]
    rows = [{"role": role, "content": text} for role, text in turns]
    path = tmp_path / "history.json"
    path.write_text(json.dumps(rows))
    found = generate_text(
        world / "policy", "and the owl?", 9, temperature=0, history=read_history(path)
    )
    messages = [*(Message(role, text) for role, text in turns), Message("user", "and the owl?")]
    ids = ChatFormat.open(world / "policy").encode_prompt(messages)
    assert found.text == greedy(world, ids, 9)


def test_a_base_model_takes_no_history(world, tmp_path):
    save_language_model(load_language_model(world / "policy"), tmp_path, world / "tokenizer")
    with pytest.raises(InputError, match="the model has no chat format"):
        generate_text(tmp_path, "the owl", history=History((Message("user", "a"),)))


def test_a_model_of_the_hub_with_a_template_takes_chats(tmp_path):
    write_model(tmp_path, "llama")
    base = generate_text(tmp_path, "the cat", 8, temperature=0)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    chat, model = ChatFormat.open(tmp_path), load_language_model(tmp_path)
    ids = chat.encode_prompt([Message("user", "the cat")])
    drawn = sample(model, [ids], SamplingParams(8, 0.0), end_ids=chat.stop_ids, pad_id=chat.pad_id)
    found = generate_text(tmp_path, "the cat", 8, temperature=0)
    assert found.text == chat.decode(drawn.ids(0)) != base.text
