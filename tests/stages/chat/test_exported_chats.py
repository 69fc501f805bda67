"""Exported models: `transformers` reads our ids, ends and scores from the folder alone."""

import json
import random
import shutil
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
import torch
from chat_tokenizers import LINES, WITHOUT_GENERATION, reference, write_byte_level
from torch.nn.functional import one_hot
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from pipeline.context import Context
from pipeline.errors import InputError
from stages.alignment.encoded_rankings import read_rankings
from stages.alignment.prompts import read_prompts
from stages.alignment.reward_evaluation import evaluate_rankings, mean_score
from stages.alignment.rollout import score_at_end
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.data.preference_dataset import Preference, Preferences, write_preferences
from stages.data.tokenizers.tokenizer_training import (
    export_tokenizer,
    split_lines,
    train_sentencepiece,
)
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import load_reward_model, save_language_model
from stages.objectives.ppo_ptx import PPOObjective
from stages.objectives.reward_modeling import RewardObjective
from stages.objectives.supervised_finetuning import SFTObjective
from stages.ppo import PPOParams
from stages.reward import RewardParams
from stages.sft import SftParams, conversation_encoder, encoded_splits
from stages.training.ranks.rank import Rank

CONTEXT = 200
CASES = [
    ("headwater", None),
    ("headwater", "chatml"),
    ("byte_level", "chatml"),
    ("byte_level", "llama3"),
    ("byte_level", "plain"),
    ("byte_level", "trimmed"),
    ("byte_level", "inst"),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "headwater").mkdir()
    texts = list(topics.values())[:20]
    lines = [line for text in texts for line in split_lines(text)]
    export_tokenizer(train_sentencepiece(lines, 500), folder / "headwater")
    write_byte_level(folder / "byte_level")
    return folder


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    rng, words = random.Random(0), " ".join(LINES).split()
    rows = []
    for i in range(24):
        texts = [" ".join(rng.choices(words, k=rng.randrange(1, 9))) for _ in range(4)]
        turns = [Message("user", "first"), Message("assistant", "so"), Message("user", texts[0])]
        prompt = turns if i % 3 else turns[2:]
        split = "eval" if i % 2 else "train"
        rows.append(Preference(str(i), tuple(prompt), tuple(texts[1:]), (0, 1, 2), split))
    folder = tmp_path_factory.mktemp("preferences")
    write_preferences(folder, rows)
    return folder


def base_model(tokenizers, case, folder):
    """A random policy with a chat template, as fine-tuning exports it."""
    name, template = case
    source = tokenizers / name
    if template in WITHOUT_GENERATION:
        path = folder.parent / "template.jinja"
        path.write_text(WITHOUT_GENERATION[template])
        template = str(path)
    chat = ChatFormat.open(source, template)
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 2}
    model = GPT(GPTConfig(len(chat.tokenizer) + 3, CONTEXT, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_language_model(model, folder, source, chat=True, ids=chat.special_ids)
    chat.export(folder)
    return chat


def reward_objective(folder, preferences):
    return RewardObjective(folder, read_rankings(preferences, "train", folder, CONTEXT))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_an_exported_reward_model_scores_alike_through_transformers(
    tokenizers, preferences, tmp_path, case
):
    base_model(tokenizers, case, tmp_path / "policy")
    objective = reward_objective(tmp_path / "policy", preferences)
    modules = objective.setup(Rank(), RewardParams().train, seed=0)
    objective.export({"model": SimpleNamespace(module=modules["model"].module)}, tmp_path / "rm")
    scorer = load_reward_model(tmp_path / "rm")
    auto = AutoTokenizer.from_pretrained(tmp_path / "rm")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    held_out = read_rankings(preferences, "eval", tmp_path / "rm", CONTEXT)
    stored = list(Preferences(preferences, "eval"))
    assert len(held_out) == len(stored) == 12
    found = []
    for preference, ranking in zip(stored, held_out, strict=True):
        for text, row in zip(preference.responses, ranking.rows, strict=True):
            messages = [*preference.prompt, Message("assistant", text)]
            ids, _ = reference(auto, messages)
            assert ids == list(row)
            with torch.no_grad():
                expected = theirs(torch.tensor([ids])).logits[0, 0].item()
            assert mean_score(scorer, [row]) == pytest.approx(expected, abs=1e-5)
            found.append(expected)
    evaluation = evaluate_rankings(scorer, held_out)
    assert sum(sum(s) for s in evaluation.scores_by_rank.values()) == pytest.approx(
        sum(found), abs=1e-3
    )
    assert len({round(score, 6) for score in found}) > 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_sampled_response_is_scored_as_the_reward_model_was_trained(
    tokenizers, preferences, tmp_path, case
):
    """At the last token of the whole rendering, whatever ended the response or cut it off."""
    chat = base_model(tokenizers, case, tmp_path / "policy")
    objective = reward_objective(tmp_path / "policy", preferences)
    scorer = objective.setup(Rank(), RewardParams().train, seed=0)["model"].module.eval()
    prompt, response = [Message("user", "What?")], "It sleeps."
    whole = chat.encode_response(prompt, response).ids.tolist()
    score = score_at_end(scorer, chat.end_id, chat.closing_ids)
    ended = whole[: len(whole) - len(chat.closing_ids)]
    other = [*ended[:-1], chat.tokenizer.eos_id]
    cut = [*ended[:-1], chat.tokenizer.encode("x")[0]]
    rows = torch.tensor([[*row, 0, 0, 0] for row in (ended, other, cut)])
    last = torch.full((3,), len(ended) - 1)
    with torch.no_grad():
        found, expected = score(rows, last), scorer(torch.tensor([whole]))[0, -1]
        mask = one_hot(last, rows.shape[1]).bool()
        elsewhere = scorer(rows[2:], position_mask_BT=mask[2:])
    torch.testing.assert_close(found, expected.expand(3), rtol=0, atol=1e-5)
    assert elsewhere.item() != pytest.approx(expected.item(), abs=1e-3)


TEXTS = ("What does the owl do?", " It sleeps.\n", "naïve 北京", "</s>", "<think> 2", "😀")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_a_fine_tuned_model_is_prompted_in_transformers_as_it_was_trained(
    tokenizers, tmp_path, case
):
    """The template is named for the training, and the base model has another or none."""
    name, template = case
    base_model(tokenizers, (name, "plain"), tmp_path / "base")
    if template in WITHOUT_GENERATION:
        (tmp_path / "template.jinja").write_text(WITHOUT_GENERATION[template])
        template = str(tmp_path / "template.jinja")
    turns = [
        (Message("user", a), Message("assistant", b), Message("user", b), Message("assistant", a))
        for a in TEXTS
        for b in TEXTS
    ]
    rows = [Conversation(str(i), messages, "train") for i, messages in enumerate(turns)]
    write_conversations(tmp_path / "conversations", rows)
    params = SftParams(chat_template=template or "headwater")
    ctx, paths = Context.local(tmp_path / "work"), (tmp_path / "conversations",)
    encoder = conversation_encoder(params, tmp_path / "base")
    train, held_out = encoded_splits(encoder, paths, params, ctx)
    objective = SFTObjective(tmp_path / "base", train, held_out, chat_template=params.chat_template)
    module = objective.setup(Rank(), params.train, seed=0)["model"].module
    objective.export({"model": SimpleNamespace(module=module)}, tmp_path / "out")
    auto, chat = AutoTokenizer.from_pretrained(tmp_path / "out"), ChatFormat.open(tmp_path / "out")
    assert len(train) == len(turns)
    for messages, trained in zip(turns, train, strict=True):
        ids, mask = reference(auto, messages)
        assert trained.ids.tolist() == ids
        if case[1] not in WITHOUT_GENERATION:
            assert trained.loss_mask.tolist() == mask
        assert trained.ids[trained.loss_mask].tolist().count(chat.end_id) == 2
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) == set(chat.end_ids)
    assert chat.end_id in chat.end_ids and chat.tokenizer.eos_id in chat.end_ids


@pytest.mark.parametrize("case", CASES[2:], ids=lambda case: f"{case[0]}-{case[1]}")
def test_an_exported_policy_holds_template_and_ends(tokenizers, preferences, tmp_path, case):
    base_model(tokenizers, case, tmp_path / "policy")
    (tmp_path / "policy" / "tokenizer_config.json").write_text(
        json.dumps(
            json.loads((tmp_path / "policy" / "tokenizer_config.json").read_text())
            | {"chat_template": "{{ 'of another model' }}"}
        )
    )
    config = tmp_path / "policy" / "generation_config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"eos_token_id": [7], "top_k": 3}))
    chat = ChatFormat.open(tmp_path / "policy")
    assert 7 in chat.end_ids and chat.end_id in chat.end_ids
    prompts = tmp_path / "prompts"
    turns = (Message("user", "What?"), Message("assistant", "So."))
    write_conversations(prompts, [Conversation(str(i), turns, "train") for i in range(4)])
    rm = reward_objective(tmp_path / "policy", preferences)
    scorer = rm.setup(Rank(), RewardParams().train, seed=0)["model"].module
    rm.export({"model": SimpleNamespace(module=scorer)}, tmp_path / "rm")
    params = PPOParams(max_new_tokens=8)
    asked = read_prompts(prompts, "train", tmp_path / "policy", CONTEXT - 8)
    ppo = PPOObjective(tmp_path / "policy", tmp_path / "rm", asked, [], (), params.settings())
    policy = ppo.setup(Rank(), params.train, seed=0)["policy"].module
    ppo.export({"policy": SimpleNamespace(module=policy)}, tmp_path / "out")
    found = GenerationConfig.from_pretrained(tmp_path / "out")
    assert set(found.eos_token_id) == set(chat.end_ids) and found.top_k == 3
    auto = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert auto.chat_template == chat.source
    (tmp_path / "out" / "chat_template.jinja").unlink()
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == chat.source
    messages = (*turns, Message("user", "And?"), Message("assistant", "Or."))
    assert reference(again, messages)[0] == chat.encode(messages).ids.tolist()


def test_models_of_other_templates_do_not_go_together(tokenizers, preferences, tmp_path):
    base_model(tokenizers, ("byte_level", "chatml"), tmp_path / "one")
    base_model(tokenizers, ("byte_level", "plain"), tmp_path / "two")
    first, second = (ChatFormat.open(tmp_path / name) for name in ("one", "two"))
    with pytest.raises(InputError, match="the chat templates of"):
        first.require_equal(second)
    first.require_equal(ChatFormat.open(tmp_path / "one"))
    shutil.copytree(tokenizers / "headwater", tmp_path / "three")
    with pytest.raises(InputError, match="the tokenizers differ"):
        first.require_equal(ChatFormat.open(tmp_path / "three"))
