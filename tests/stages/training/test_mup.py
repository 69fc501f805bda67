"""muP: what a step changes is as large in a wide model as in a narrow one (the coordinate check of
Yang et al. 2022, appendix D.1), and what is exported is the same function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_parity import assert_transformers_agree
from torch import Tensor
from torch.nn import functional as F

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.initialization import initial_model
from stages.models.language_model import LanguageModel
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig, MuP
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.model_io import load_language_model, save_language_model
from stages.models.mup import lr_multipliers
from stages.models.registry import build_model, families
from stages.training.objective import Trainable
from stages.training.optim.hooked_optimizer import HookedOptimizer
from stages.training.optim.optimizer_registry import find_optimizer
from stages.training.optim.param_groups import build_optimizer
from stages.training.ranks.rank import Rank
from stages.training.training_params import TrainSection
from stages.training.zero_state import build_partitioned_state

VOCABULARY, CONTEXT, SAMPLES, STEPS = 16, 16, 8, 3
NARROW = 64
SPREAD = ExpertsConfig(num_experts=4, moe_every=2, capacity_factor=None)


def config(family: str, width: int, mup: MuP | None) -> LanguageModelConfig:
    """Two layers of four heads that grow with the width."""
    if family == "gpt2":
        return GPTConfig(VOCABULARY, CONTEXT, 2, width, 4, mup=mup)
    experts = SPREAD if family == "switch" else None
    return LlamaConfig(
        VOCABULARY, CONTEXT, 2, width, 4, 2, 2 * width, width // 4, qk_norm=family != "llama",
        tie_embeddings=family != "llama", experts=experts, init_scale=0.1 if experts else None,
        mup=mup,
    )  # fmt: skip


def build(model: LanguageModel, settings: TrainSection) -> HookedOptimizer:
    """Build the optimizer as an engine does, with its states."""
    matrix_lr = find_optimizer(settings.optimizer).mup_matrix_lr
    trainable = Trainable(model, lr_multipliers=lr_multipliers(model, matrix_lr))
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(trainable, parameters, settings, settings.lr)
    build_partitioned_state(0, None, optimizer, parameters, Rank())
    return optimizer


class Watch:
    """What a forward pass makes on its way: of blocks, their halves, the embedding, the products
    of queries and keys, and the logits."""

    def __init__(self, model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
        self.model, self._found = model, {}
        for name, part in model.named_modules():
            last = name.rpartition(".")[2]
            if last in ("attn", "attention", "mlp", "feed_forward", "wte", "embedding", "0", "1"):
                part.register_forward_hook(lambda _, __, made, name=name: self._note(name, made))
        real = F.scaled_dot_product_attention

        def noted(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
            shared = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            self._found[f"products-{len(self._found)}"] = q @ shared.mT * rest["scale"]
            return real(q, k, v, **rest)

        patch.setattr(F, "scaled_dot_product_attention", noted)

    def _note(self, name: str, made: Tensor | tuple[Tensor, object]) -> None:
        self._found[name] = made[0] if isinstance(made, tuple) else made

    def look(self, tokens: Tensor) -> dict[str, Tensor]:
        self._found = {}
        with torch.no_grad():
            logits = self.model(tokens)
        return {**self._found, "logits": logits}


def coordinates(
    family: str, width: int, mup: MuP | None, name: str, patch: pytest.MonkeyPatch
) -> dict[str, float]:
    """The mean size of each quantity after a few steps, and of its change in them."""
    torch.manual_seed(0)
    model = build_model(config(family, width, mup))
    window = torch.randint(
        0, VOCABULARY, (SAMPLES, CONTEXT + 1), generator=torch.Generator().manual_seed(5)
    )
    tokens, targets = window[:, :-1], window[:, 1:]
    lr = {"adamw": 2e-3, "lion": 1e-3, "muon": 1e-2}[name]
    optimizer = build(model, TrainSection(lr=lr, optimizer=name))
    watch = Watch(model, patch)
    before = watch.look(tokens)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(tokens, targets_BT=targets) / targets.numel()).backward()
        optimizer.step()
    after = watch.look(tokens)
    noise = ("logits", "products")  # what the first weights alone make of these shrinks with width
    sizes = {k: float(v.abs().mean()) for k, v in after.items() if not k.startswith(noise)}
    changes = {f"change of {k}": float((after[k] - before[k]).abs().mean()) for k in after}
    return sizes | changes


def slopes(
    family: str, name: str = "adamw", *, mup: bool = True, widths: tuple[int, ...] = (64, 128, 256)
) -> dict[str, float]:
    """Of the logarithm of each size over that of the width."""
    base, runs = MuP(base_width=NARROW, base_head_size=16) if mup else None, []
    for width in widths:
        with pytest.MonkeyPatch.context() as patch:
            runs.append(coordinates(family, width, base, name, patch))
    x = torch.tensor(widths).log()
    x -= x.mean()
    return {
        key: float(x @ torch.tensor([run[key] for run in runs]).log() / (x @ x)) for key in runs[0]
    }


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gpt2", "adamw"),
        ("llama", "adamw"),
        ("switch", "adamw"),
        ("gpt2", "lion"),
        ("gpt2", "muon"),
    ],
)
def test_a_step_changes_as_much_at_every_width(family: str, name: str) -> None:
    widths = (64, 128, 256, 512) if name == "adamw" else (64, 128, 256)
    found = slopes(family, name, widths=widths)
    products = [found.pop(key) for key in list(found) if "products" in key]
    assert len(found) == 15
    odd = {key: round(slope, 2) for key, slope in found.items() if abs(slope) > 0.2}
    assert not odd
    # Queries and keys that agree by chance make products that fall with the root of the head's
    # size, those that learned to agree do not: with the usual root of it they would rise.
    assert len(products) == 2
    assert all(-0.7 < slope < 0.1 for slope in products)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_without_it_a_step_changes_more_the_wider_a_model_is(name: str) -> None:
    found = slopes("gpt2", name, mup=False)
    assert found["change of logits"] > 0.4
    assert found["h.1"] > 0.4


def names(found: dict[str, float], value: float) -> set[str]:
    return {name.split(".", 2)[-1] for name, rate in found.items() if rate == value}


def test_the_rates_of_each_kind_of_parameter() -> None:
    wide = replace(config("switch", 256, MuP(base_width=64)), tie_embeddings=False)  # type: ignore[call-arg]
    matrices = {"attention.qkv.weight", "attention.out.weight", "feed_forward.gate_up.weight",
                "feed_forward.down.weight", "feed_forward.experts.gate_up",
                "feed_forward.experts.down"}  # fmt: skip
    router = {"feed_forward.router.weight"}
    model = build_model(wide)
    found = lr_multipliers(model)
    assert names(found, 1 / 4) == matrices | router
    assert set(found.values()) == {1 / 4}, "embedding, head and gains keep theirs"
    with_muon = lr_multipliers(model, find_optimizer("muon").mup_matrix_lr)
    assert (names(with_muon, 1 / 2), names(with_muon, 1 / 4)) == (matrices, router)
    assert not lr_multipliers(build_model(replace(wide, mup=None)))


def test_a_step_takes_as_much_off_every_decayed_weight() -> None:
    model = build_model(config("gpt2", 256, MuP(base_width=64)))
    groups = build(model, TrainSection(lr=0.01, weight_decay=0.2)).param_groups
    decays = {(g["lr"], round(g["lr"] * g["weight_decay"], 12)) for g in groups}
    assert decays == {(0.01, 0.002), (0.0025, 0.002), (0.01, 0.0)}


@pytest.mark.parametrize("family", ["gpt2", "llama", "switch"])
def test_at_the_base_width_all_is_as_without(family: str) -> None:
    same = MuP(base_width=NARROW, base_head_size=16)
    tokens = torch.randint(0, VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    made = []
    for mup in (same, None, MuP(base_width=32)):
        torch.manual_seed(3)
        made.append(build_model(config(family, NARROW, mup)).eval()(tokens))
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-3)


def test_first_weights_of_routers_and_experts() -> None:
    """The router's fall with the width, whichever way they are drawn; experts' with its root."""
    for scale in (None, 0.1):
        shape = replace(config("switch", 256, MuP(base_width=64)), init_scale=scale)  # type: ignore[call-arg]
        base = replace(shape, hidden_size=64, intermediate_size=128, mup=None)  # type: ignore[call-arg]
        wide, narrow = (
            dict(build_model(c).layers[1].feed_forward.named_parameters())  # type: ignore[union-attr]
            for c in (shape, base)
        )
        for name, falls in (("router.weight", 4), ("experts.gate_up", 2), ("experts.down", 2)):
            assert float(narrow[name].detach().std() / wide[name].detach().std()) == pytest.approx(
                falls, rel=0.15
            )


FAMILIES = ["gpt2", "llama", "qwen3", "switch"]


@pytest.fixture(params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> Iterator[tuple[LanguageModel, Tensor]]:
    """A model with muP whose factors are no powers of two, far from its first weights."""
    torch.manual_seed(0)
    shape = replace(config(request.param, 96, MuP(base_width=36)), vocab_size=64)
    model = build_model(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    yield model.eval(), torch.randint(0, 64, (3, CONTEXT))


def test_exported_weights_are_the_same_function(
    trained: tuple[LanguageModel, Tensor], tmp_path: Path
) -> None:
    model, tokens = trained
    save_language_model(model, tmp_path)  # type: ignore[arg-type]
    assert_transformers_agree(tmp_path)
    with torch.no_grad():
        ours, plain = model(tokens), load_language_model(tmp_path)(tokens)
    torch.testing.assert_close(plain, ours, rtol=0, atol=1e-5)
    assert float(ours.std()) > 0.1


def test_training_goes_on_from_exported_weights_with_muP_or_without(
    trained: tuple[LanguageModel, Tensor], tmp_path: Path
) -> None:
    model, tokens = trained
    save_language_model(model, tmp_path)  # type: ignore[arg-type]
    other = MuP(base_width=24, base_head_size=9)
    for mup in (model.config.mup, other, None):
        again = initial_model(replace(model.config, mup=mup), tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=1e-5)
        assert again.config.mup == mup
        if mup == model.config.mup:
            for name, value in model.state_dict().items():
                torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_file_says_the_base_width_alone() -> None:
    for family in ("gpt2", "llama"):
        section = families()[family].section(mup=MuP(base_width=64))
        assert section.config("tiny", 512).mup == MuP(base_width=64)
