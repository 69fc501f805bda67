"""The reward stage without its processes: parameters, batches, centring, judgement."""

import json
from collections import Counter

import pytest
import torch
from pydantic import ValidationError
from toy_alignment import write_model
from transformers import AutoModelForSequenceClassification

from pipeline.context import Context
from pipeline.errors import InputError
from stages.alignment.encoded_rankings import (
    EncodedRanking,
    RankingEncoder,
    collate_rankings,
    read_rankings,
    require_rankings,
)
from stages.alignment.reward_evaluation import (
    evaluate_folder,
    evaluate_rankings,
    mean_score,
    score_responses,
)
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.data.preference_dataset import Preference, write_preferences
from stages.models.model_io import load_reward_model
from stages.objectives.reward_modeling import RewardObjective
from stages.reward import RewardParams, encoded_rankings, report_evaluation
from stages.training.ranks.rank import Rank
from stages.training.supervised import by_name


class Bare:
    """An engine of which only the module is asked for."""

    def __init__(self, module):
        self.module = module


def rankings(world):
    return [
        read_rankings(world / "preferences", split, world / "policy", 40)
        for split in ("train", "eval")
    ]


@pytest.fixture
def objective(world):
    made = RewardObjective(world / "policy", *rankings(world))
    torch.manual_seed(0)
    made.modules = made.setup(Rank(), RewardParams().train, seed=0)
    return made


def test_a_batch_that_does_not_fall_on_the_workers_is_a_problem():
    params = RewardParams(train={"global_batch_size": 15}, workers={"num": 2})
    (problem,) = params.check({})
    assert problem.key == "train.global_batch_size" and "15 is not divisible" in problem.message
    assert not list(RewardParams(train={"global_batch_size": 16}, workers={"num": 2}).check({}))
    with pytest.raises(ValidationError, match="Extra inputs"):
        RewardParams(margin=1)


def test_each_response_is_read_once_at_its_end(objective):
    rankings = [
        EncodedRanking(((2, 9, 3), (2, 9, 9, 9, 3)), (1, 0)),
        EncodedRanking(((2, 3),) * 3, (0, 2, 1)),
    ]
    batch = collate_rankings(rankings)
    assert batch["tokens"].shape == (5, 5)
    assert batch["tokens"][batch["position_mask"]].tolist() == [3] * 5
    assert batch["ranks"].tolist() == [[1, 0, -1], [0, 2, 1]]
    scores = score_responses(objective.modules["model"].module, batch)
    assert scores.shape == (2, 3) and scores[0, 2] == 0
    alone = objective.modules["model"].module(torch.tensor([[2, 9, 3]]))[0, -1]
    torch.testing.assert_close(scores[0, 0], alone)


def test_the_loss_counts_prompts(objective):
    batch = objective.collate([objective.train_samples[i] for i in range(4)])
    loss = objective.loss(objective.modules["model"].module, batch)
    assert objective.units(batch) == 4
    assert objective.num_tokens(batch) == batch["tokens"].numel()
    pairs = sum(a < b for r in batch["ranks"].tolist() for a in r for b in r if a >= 0)
    accuracy = loss.metrics["accuracy"]
    assert 0 <= accuracy.total.item() <= pairs == accuracy.units.item()
    assert loss.total.requires_grad and loss.total.item() > 0


def test_a_ranking_has_no_perplexity(objective):
    found = objective.evaluate({"model": objective.modules["model"].module}, 0)
    assert set(found) == {"eval_loss", "eval_accuracy", "eval_margin"}


def test_what_is_saved_scores_demonstrations_0_and_loads_elsewhere(objective, world, tmp_path):
    model = objective.modules["model"].module
    tokens = torch.tensor([[2, 20, 30, 3]])
    apart = model(tokens)[0, -1] - model(tokens[:, :3])[0, -1]
    objective.export({"model": Bare(model)}, tmp_path)
    best = [r.rows[r.ranks.index(0)] for r in objective.rankings]
    scorer = load_reward_model(tmp_path)
    assert mean_score(scorer, best) == pytest.approx(0, abs=1e-5)
    found = scorer(tokens)[0, -1] - scorer(tokens[:, :3])[0, -1]
    torch.testing.assert_close(found, apart, rtol=0, atol=1e-5)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(
        theirs(tokens).logits[0, 0], scorer(tokens)[0, -1], rtol=0, atol=1e-5
    )
    _, held_out = rankings(world)
    judged = evaluate_folder(Rank(), tmp_path, held_out)
    unseen = mean_score(scorer, [ranking.best_response for ranking in held_out])
    assert judged.demonstration_score == pytest.approx(unseen, abs=1e-5) and unseen != 0
    assert judged.prompts == 48
    assert evaluate_folder(Rank(index=1, world=2), tmp_path, held_out) is None
    assert evaluate_folder(Rank(), tmp_path, []) is None


def test_scores_are_centred_on_a_sample_of_the_demonstrations(world, tmp_path):
    """The first rankings of a file are of one kind: of its first modules, its first authors."""
    made = RewardObjective(world / "policy", *rankings(world), centering_samples=40)
    modules = made.setup(Rank(), RewardParams().train, seed=0)
    stored = list(made.train_rankings)
    places = [stored.index(ranking) for ranking in made.rankings]
    assert len(set(places)) > 100 and sorted(places[:40]) != list(range(40))
    assert 60 < sum(places[:40]) / 40 < 100
    made.export({"model": Bare(modules["model"].module)}, tmp_path)
    centred = mean_score(load_reward_model(tmp_path), [r.best_response for r in made.rankings[:40]])
    assert centred == pytest.approx(0, abs=1e-5)


def test_a_judgement_counts_pairs_by_rank(objective):
    class Oracle:
        def __call__(self, tokens_BT, **_):
            return tokens_BT[:, 1].float()

    three = EncodedRanking(((2, 9, 3), (2, 7, 3), (2, 8, 3)), (0, 1, 2))
    equal = EncodedRanking(((2, 5, 3), (2, 5, 3)), (0, 1))
    rankings = [three, equal]
    judged = evaluate_rankings(Oracle(), rankings)
    found = {ranks: (e.mean, e.pairs) for ranks, e in judged.by_ranks.items()}
    assert found == {(0, 1): (0.75, 2), (0, 2): (1.0, 1), (1, 2): (0.0, 1)}
    assert judged.accuracy.mean == pytest.approx(2.5 / 4)
    assert judged.accuracy.bounds == "too few"
    assert judged.longer_accuracy.mean == 0.5 and judged.longer_preferred.pairs == 0
    assert judged.length_correlation is None
    assert judged.margin == pytest.approx((2 + 1 - 1 + 0) / 4)
    assert judged.scores_by_rank == {0: [9, 5], 1: [7, 5], 2: [8]}
    assert judged.demonstration_score == 7


def test_rankings_that_fit_no_context_are_an_error(world):
    with pytest.raises(InputError, match="none of 160 train preferences fits a context of 5"):
        read_rankings(world / "preferences", "train", world / "tokenizer", 5)


def test_a_template_that_refuses_all_rankings_is_named(world, tmp_path):
    (tmp_path / "own.jinja").write_text(
        "{% if messages[0].content == 'no' %}{{ raise_exception('not this one') }}{% endif %}"
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    )
    encoder = RankingEncoder(world / "policy", 40, str(tmp_path / "own.jinja"))
    said = [
        Preference(text, (Message("user", text),), ("a", "b"), (0, 1)) for text in ("no", "yes")
    ]
    counts = Counter()
    found = [encoder.ranking(preference, counts) for preference in said]
    assert found[0] is None and found[1] and counts["refused_by_template"] == 1
    write_preferences(tmp_path / "none", said[:1])
    counts = Counter(read=1, refused_by_template=1)
    with pytest.raises(InputError, match=r"refuses train preferences: .*not this one"):
        require_rankings(0, counts, encoder, "train", tmp_path / "none")


class LengthScorer:
    """A scorer that reads the first token, and adds a tenth of the length."""

    def __call__(self, tokens_BT, token_mask_BT, **_):
        return tokens_BT[:, 1].float() + 0.1 * token_mask_BT.sum(1)


def test_the_report_names_a_length_bias(tmp_path):
    """Content says nothing, labels prefer the longer response in 70 %."""
    generator = torch.Generator().manual_seed(0)
    rankings = []
    for _ in range(200):
        short, extra = torch.randint(3, 12, (2,), generator=generator).tolist()
        right = torch.rand(1, generator=generator).item() < 0.7
        rows = ((2, 5, *[4] * (short + extra)), (2, 5, *[4] * short))
        rankings.append(EncodedRanking(rows, (0, 1) if right else (1, 0)))
    judged = evaluate_rankings(LengthScorer(), rankings)
    ctx = Context.local(tmp_path)
    report_evaluation(judged, ctx)
    found = json.loads((ctx.observed / "results.json").read_text())
    labels = sum(ranking.ranks == (0, 1) for ranking in rankings) / 200
    assert found["accuracy"] == found["longer_accuracy"] == pytest.approx(labels)
    assert found["accuracy_low"] < labels < found["accuracy_high"]
    assert found["longer_preferred"] == 1
    assert found["length_correlation"] == pytest.approx(1, abs=1e-5)
    drawn = {
        panel["title"]: panel for panel in json.loads((ctx.observed / "panels.json").read_text())
    }
    rows = drawn["Held-out accuracy by length"]["rows"]
    assert len(rows) == 4 and sum(row[3] for row in rows) == 200
    assert [row[1] for row in rows] == [0, 0, 1, 1]
    assert {row[0].split()[0] for row in rows[:2]} == {"shorter"}
    assert drawn["Held-out accuracy by ranks"]["rows"][0][0] == "0 over 1"


def test_scores_that_are_no_numbers_are_refused():
    class Broken:
        def __call__(self, tokens_BT, **_):
            return tokens_BT[:, 1].float() * float("nan")

    with pytest.raises(InputError, match="not finite"):
        evaluate_rankings(Broken(), [EncodedRanking(((2, 9), (2, 8)), (0, 1))])


def test_training_and_results_have_one_accuracy(objective):
    """Prompts of unequal numbers of pairs separate a mean over prompts from one over pairs."""
    model = objective.modules["model"].module
    objective.eval_dataset = [
        EncodedRanking(((2, 9, 3), (2, 7, 3), (2, 8, 11, 3), (2, 30, 3)), (0, 1, 2, 3)),
        EncodedRanking(((2, 12, 3), (2, 20, 30, 3)), (1, 0)),
    ]
    series = objective.evaluate({"model": model}, 0)
    judged = evaluate_rankings(model.eval(), objective.eval_dataset)
    assert series["eval_accuracy"] == pytest.approx(judged.accuracy.mean)
    assert series["eval_margin"] == pytest.approx(judged.margin, abs=1e-5)


def test_one_long_response_leaves_alone(world, tmp_path):
    """The ranking stays while two responses of different ranks are left."""
    short, other, long = "the owl sings", "the owl", "the owl " * 30
    prompt = (Message("user", "what does the owl do?"),)
    kept = [
        Preference("a", prompt, (long, short, other), (0, 2, 1)),
        Preference("b", prompt, (short, other), (1, 0)),
    ]
    left_out = [
        Preference("c", prompt, (short, long), (0, 1)),
        Preference("d", prompt, (short, other, long), (1, 1, 0)),
        Preference("e", prompt, (long, short), (0, 1), "eval"),
    ]
    write_preferences(tmp_path / "own", kept + left_out)
    ctx = Context.local(tmp_path)
    train, held_out = encoded_rankings(world / "policy", tmp_path / "own", RewardParams(), ctx)
    chat = ChatFormat.open(world / "policy")
    wanted = [
        EncodedRanking(
            tuple(tuple(chat.encode_response(prompt, text).ids.tolist()) for text in texts), ranks
        )
        for texts, ranks in (((short, other), (2, 1)), ((short, other), (1, 0)))
    ]
    assert list(train) == wanted
    assert list(train) == read_rankings(tmp_path / "own", "train", world / "policy", 40)
    assert len(held_out) == 0
    found = json.loads((ctx.observed / "results.json").read_text())
    assert (found["left_out_too_long"], found["responses_too_long"]) == (2, 3)
    assert (found["eval_left_out_too_long"], found["eval_responses_too_long"]) == (1, 1)
    assert train.table.counts["shortened"] == 1
    warnings = json.loads((ctx.observed / "warnings.json").read_text())
    assert "2 of 4 rankings (50.0%) are left out" in warnings[0]["message"]


def test_a_split_without_rankings_is_named(world, tmp_path):
    prompt = (Message("user", "what does the owl do?"),)
    write_preferences(tmp_path / "own", [Preference("a", prompt, ("so", "no"), (0, 1), "eval")])
    with pytest.raises(InputError, match="there are no train preferences"):
        encoded_rankings(
            world / "policy", tmp_path / "own", RewardParams(), Context.local(tmp_path)
        )


@pytest.mark.parametrize("family", ["llama", "qwen3", "switch"])
def test_a_reward_model_of_each_family_trains_and_loads_elsewhere(world, tmp_path, family):
    base = write_model(tmp_path / "base", world / "tokenizer", family)
    made = RewardObjective(base, *rankings(world), centering_samples=20)
    model = made.setup(Rank(), RewardParams().train, seed=0)["model"].module
    batch = made.collate([made.train_samples[i] for i in range(4)])
    losses, units = by_name(made.loss(model, batch)), by_name(made.units(batch))
    assert losses.keys() == units.keys()
    assert len(losses) == (2 if family == "switch" else 1)
    sum(loss.total for loss in losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    # Padding changes nothing.
    alone = [score_responses(model, collate_rankings([made.train_samples[i]])) for i in range(4)]
    torch.testing.assert_close(score_responses(model, batch), torch.cat(alone), rtol=0, atol=1e-5)
    made.export({"model": Bare(model)}, tmp_path / "out")
    scorer = load_reward_model(tmp_path / "out")
    best = [ranking.best_response for ranking in made.rankings[:20]]
    assert mean_score(scorer, best) == pytest.approx(0, abs=1e-5)
    tokens = torch.tensor([[2, 20, 30, 3]])
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        theirs(tokens).logits[0, 0] + scorer.score_bias, scorer(tokens)[0, -1], rtol=0, atol=1e-5
    )
