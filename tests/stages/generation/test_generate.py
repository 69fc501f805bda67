"""What `headwater generate` calls."""

import pytest
import torch

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
from stages.generation.generate import generate_text
from stages.generation.sampling import SamplingParams, sample
from stages.models.model_io import load_language_model, save_language_model


def greedy(world, ids, count):
    model = load_language_model(world / "policy")
    drawn = sample(model, [ids], SamplingParams(count, 0.0), end_ids=[EOS], pad_id=PAD)
    return Tokenizer(world / "policy").decode(drawn.ids(0))


def test_a_chat_model_gets_the_chat_format(world):
    ids = ChatFormat.open(world / "policy").encode_prompt([Message("user", "and the owl?")])
    text = generate_text(world / "policy", "and the owl?", 12, temperature=0)
    assert text == greedy(world, ids, 12)


def test_a_base_model_continues_the_prompt(world, tmp_path):
    save_language_model(load_language_model(world / "policy"), tmp_path, world / "tokenizer")
    ids = [EOS, *Tokenizer(tmp_path).encode("the owl")]
    assert generate_text(tmp_path, "the owl", 12, temperature=0) == greedy(world, ids, 12)


def test_samples_depend_on_the_seed(world):
    first, again, other = (
        generate_text(world / "policy", "and the owl?", 12, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_response_is_limited_by_the_context(world):
    assert generate_text(world / "policy", "tell me of the owl", 10_000, temperature=0)


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
