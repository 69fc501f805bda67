"""A model from elsewhere becomes an artifact that everything else takes."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from chat_model_folders import CHAT_FAMILIES, TOKENS, token_ids, write_chat_model
from hf_model_folders import BEGIN, FAMILIES, KNOWN, TEXTS, shape, write_model, write_tokenizer
from hf_parity import assert_transformers_agree
from transformers import AutoTokenizer, GenerationConfig, Qwen3ForCausalLM

from pipeline.context import Context
from pipeline.errors import Failure, InputError
from pipeline.stage import Inputs
from stages.data.documents import documents_writer, write_stats
from stages.data.token_store import TokenStore
from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
from stages.evaluation.perplexity import document_loss
from stages.generation.generate import generate_text
from stages.models.hf_io import SpecialIds, is_chat, special_ids
from stages.models.model_io import load_language_model, save_language_model
from stages.objectives.pretraining import continuations
from stages.pretrain import PretrainParams, pretraining_task
from stages.pretrained import PretrainedParams, pretrained
from stages.tokenize import TokenizerTrainParams, TokenPackParams, pack_tokens
from stages.training.ranks.rank import Rank


def objective_of(params: PretrainParams, *paths: Any, **named: Any) -> Any:
    return params.objective.build(pretraining_task(params, *paths, **named))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = write_model(tmp_path / "Qwen3-mini", "qwen3")
    (folder / "merges.txt").write_text("a b")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return folder


@pytest.mark.parametrize("name", ["tokenizer_config.json", "README.md", "model.safetensors"])
def test_a_link_out_of_the_folder_is_refused(name: str, elsewhere: Path, tmp_path: Path) -> None:
    """It may lead to a key; what it leads to would be published. One within is a file's name."""
    (elsewhere / name).touch()
    (elsewhere / name).rename(tmp_path / name)
    (elsewhere / name).symlink_to(tmp_path / name)
    params, ctx = PretrainedParams(path=str(elsewhere)), Context.local(tmp_path / "w")
    with pytest.raises(InputError, match=f"{name} is a link out of the folder"):
        params.externals()
    ctx.externals = {"config.json": "as planned, when there was no link"}
    with pytest.raises(InputError, match=f"{name} is a link out of the folder"):
        pretrained(params, Inputs({}), ctx.out, ctx)
    assert not list(ctx.out.iterdir())
    (elsewhere / name).unlink()
    (tmp_path / name).rename(elsewhere / "real")
    (elsewhere / name).symlink_to("real")
    assert name in params.externals()


@pytest.fixture
def snapshot(elsewhere: Path, tmp_path: Path) -> Path:
    """The same model as `snapshot_download` leaves it in its cache."""
    repository = tmp_path / "hub/models--Qwen--mini"
    folder = repository / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(elsewhere.iterdir())):
        shutil.copyfile(path, repository / f"blobs/{number:040x}")
        (folder / path.name).symlink_to(f"../../blobs/{number:040x}")
    return folder


def test_a_snapshot_of_the_hubs_cache_is_read_as_the_files_themselves(
    snapshot: Path, elsewhere: Path, tmp_path: Path
) -> None:
    found = PretrainedParams(path=str(snapshot)).externals()
    assert found == PretrainedParams(path=str(elsewhere)).externals()
    (tmp_path / "latest").symlink_to(snapshot)
    assert found == PretrainedParams(path=str(tmp_path / "latest")).externals()
    out = bring_in(snapshot, tmp_path)
    for path in (p for p in out.iterdir() if p.name in ("merges.txt", "tokenizer.json")):
        assert not path.is_symlink()
        assert path.read_bytes() == (elsewhere / path.name).read_bytes()
    assert load_language_model(out).config == load_language_model(elsewhere).config


@pytest.mark.parametrize(
    "to",
    [
        "../../../secret",
        "../../refs/main",
        "../" + "b" * 40 + "/secret",
        "../../blobs/link",
        "../../../models--other--one/blobs/secret",
    ],
    ids=["cache", "repository", "another snapshot", "link on", "another repository"],
)
def test_a_link_out_of_the_hubs_repository_is_refused(to: str, snapshot: Path) -> None:
    """A blob that is a link itself leads where that does."""
    place = Path(os.path.normpath(snapshot / to))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.name == "link":
        (snapshot.parents[2] / "secret").write_text("a key")
        place.symlink_to("../../secret")
    else:
        place.write_text("a key")
    (snapshot / "README.md").symlink_to(to)
    with pytest.raises(InputError, match=r"README\.md is a link out of the folder"):
        PretrainedParams(path=str(snapshot)).externals()


@pytest.mark.parametrize("name", ["snapshot", "models"])
def test_blobs_beside_any_other_folder_are_none_of_its_own(
    name: str, snapshot: Path, tmp_path: Path
) -> None:
    """The names are those of a cache, both of them."""
    moved = tmp_path / "hub" / ("models" if name == "models" else "models--Qwen--mini")
    snapshot.parents[1].rename(moved)
    if name == "snapshot":
        (moved / "snapshots").rename(moved / name)
    folder = next(moved.glob("snapshot*/*"))
    with pytest.raises(InputError, match="is a link out of the folder"):
        PretrainedParams(path=str(folder)).externals()


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**said, **changes}))


def bring_in(folder: Path, tmp_path: Path) -> Path:
    ctx = Context.local(tmp_path / "w")
    pretrained(PretrainedParams(path=str(folder)), Inputs({}), ctx.out, ctx)
    return ctx.out


def test_weights_config_and_tokenizer_come_along(elsewhere: Path, tmp_path: Path) -> None:
    out = bring_in(elsewhere, tmp_path)
    theirs = Qwen3ForCausalLM.from_pretrained(elsewhere).eval()
    tokens = torch.randint(8, KNOWN, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(load_language_model(out)(tokens), theirs(tokens).logits)
        again = Qwen3ForCausalLM.from_pretrained(out).eval()
        torch.testing.assert_close(again(tokens).logits, theirs(tokens).logits)
    end = open_tokenizer(elsewhere).eos_id
    assert special_ids(out) == (None, None, end), "none is invented"
    assert Qwen3ForCausalLM.from_pretrained(out).config.pad_token_id is None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (elsewhere / name).read_bytes()
    assert (out / "merges.txt").exists()
    assert not (out / "pytorch_model.bin").exists()


def test_what_a_chat_model_brings_is_kept_and_the_rest_is_listed(
    elsewhere: Path, tmp_path: Path
) -> None:
    """Templates, both ends, sampling settings, license and card, also in a model trained on."""
    end = open_tokenizer(elsewhere).eos_id
    template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    (elsewhere / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja"):
        (elsewhere / name).write_text(template)
    (elsewhere / "LICENSE").write_text("Do good.")
    (elsewhere / "README.md").write_text("# Mini")
    (elsewhere / "onnx").mkdir()
    (elsewhere / "onnx/model.onnx").write_bytes(b"graph")
    edit(elsewhere, eos_token_id=[end, 7], sliding_window=None, rotary_percent=1.0)
    settings = {"eos_token_id": [7, end], "pad_token_id": 7, "do_sample": True, "top_p": 0.95}
    (elsewhere / "generation_config.json").write_text(json.dumps(settings))
    ctx = Context.local(tmp_path / "w")
    pretrained(PretrainedParams(path=str(elsewhere)), Inputs({}), ctx.out, ctx)
    auto = AutoTokenizer.from_pretrained(ctx.out)
    assert auto.chat_template == {"default": template, "tools": template}
    generation = GenerationConfig.from_pretrained(ctx.out)
    assert (generation.do_sample, generation.top_p, generation.pad_token_id) == (True, 0.95, 7)
    assert generation.eos_token_id == [7, end]
    assert Qwen3ForCausalLM.from_pretrained(ctx.out).config.eos_token_id == [end, 7]
    assert (ctx.out / "LICENSE").read_text() == "Do good."
    assert (ctx.out / "README.origin.md").read_text() == "# Mini"
    (panel,) = json.loads((ctx.observed / "panels.json").read_text())
    rows = {row[1]: row[2:] for row in panel["rows"]}
    assert rows["pytorch_model.bin"] == rows["onnx/"] == ["present", "left out"]
    assert rows["rotary_percent"] == ["1.0", "left out"]
    assert "hidden_size" not in rows and "additional_chat_templates/" not in rows
    result = json.loads((ctx.observed / "results.json").read_text())
    assert result["left_out"] == len(rows)
    again = save_again(ctx.out, tmp_path / "trained")
    assert AutoTokenizer.from_pretrained(again).chat_template == auto.chat_template
    assert GenerationConfig.from_pretrained(again).to_diff_dict() == generation.to_diff_dict()


def save_again(folder: Path, target: Path) -> Path:
    """As a stage does that trains the model further."""
    tokenizer = open_tokenizer(folder)
    ids = SpecialIds(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)
    save_language_model(load_language_model(folder), target, folder, ids=ids)
    return target


def test_a_generation_config_that_is_no_object_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / "generation_config.json").write_text("[1]")
    with pytest.raises(InputError, match="is not a JSON object") as found:
        bring_in(elsewhere, tmp_path)
    assert found.value.where.endswith("generation_config.json")


def test_identity_is_the_content_and_no_pickle(elsewhere: Path) -> None:
    params = PretrainedParams(path=str(elsewhere))
    first = params.externals()
    assert "model.safetensors" in first and "pytorch_model.bin" not in first
    (elsewhere / "merges.txt").write_text("b c")
    assert params.externals() != first
    assert params.known_ids == KNOWN
    first = params.externals()
    (elsewhere / "README.md").write_text("tags:\n- conversational\n")
    assert params.externals() != first, "the card decides how prompts are given"


def test_what_is_no_model_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json next to safetensors"):
        PretrainedParams(path=str(tmp_path / "empty")).externals()
    with pytest.raises(InputError, match="a local folder, which has no revisions") as found:
        PretrainedParams(path=str(elsewhere), revision="main").externals()
    assert found.value.where == "revision"
    with pytest.raises(InputError, match="no such folder"):
        PretrainedParams(path=str(tmp_path / "nothing")).externals()
    edit(elsewhere, model_type="mamba")
    with pytest.raises(InputError, match="models of type 'mamba'"):
        bring_in(elsewhere, tmp_path)


def test_of_several_ends_the_tokenizers_own_is_kept(elsewhere: Path, tmp_path: Path) -> None:
    """As of Llama 3's chat models, whose config names another one first."""
    end = open_tokenizer(elsewhere).eos_id
    edit(elsewhere, eos_token_id=[1, end + 1, end])
    edit(elsewhere, "tokenizer_config.json", pad_token=BEGIN)
    out = bring_in(elsewhere, tmp_path)
    assert special_ids(out) == (end + 1, None, end)
    found = open_tokenizer(out)
    assert (found.eos_id, found.pad_id, found.bos_id) == (end, end + 1, None)


class Hub(BaseHTTPRequestHandler):
    """What a hub says of a repository with one branch, whose commits hold one model."""

    commit = "a" * 40
    files: ClassVar[Path]

    def do_GET(self) -> None:
        found = self._found(self.path.partition("?")[0])
        self.send_response(404 if found is None else 200)
        name = Path(self.path).name.partition("?")[0]
        self.send_header("ETag", f'"{name}-{self.commit[:4]}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        self.wfile.write((found or b"") if self.command == "GET" else b"")

    do_HEAD = do_GET

    def _found(self, path: str) -> bytes | None:
        if path == "/api/models/org/name/revision/dev":
            return json.dumps({"id": "org/name", "sha": self.commit}).encode()
        if path == f"/api/models/org/name/tree/{'a' * 40}":
            sizes = [(file.name, file.stat().st_size) for file in self.files.iterdir()]
            tree = [{"type": "file", "path": n, "size": size, "oid": n} for n, size in sizes]
            return json.dumps(tree).encode()
        if path.startswith(f"/org/name/resolve/{'a' * 40}/"):
            return (self.files / Path(path).name).read_bytes()
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.commit, Hub.files = "a" * 40, elsewhere
    server = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield Hub
    server.shutdown()
    server.server_close()


def test_a_branch_of_the_hub_is_the_commit_that_it_is_now(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = PretrainedParams(path="org/name", revision="dev")
    assert branch.externals() == {"hub": f"org/name@{'a' * 40}"}
    hub.commit = "b" * 40
    assert branch.externals() == {"hub": f"org/name@{'b' * 40}"}
    with pytest.raises(InputError, match="Hugging Face Hub request failed") as found:
        PretrainedParams(path="org/name", revision="gone").externals()
    assert "a full commit" in found.value.remedy
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="Hugging Face Hub request failed"):
        branch.externals()
    whole = PretrainedParams(path="org/name", revision="c" * 40)
    assert whole.externals() == {"hub": f"org/name@{'c' * 40}"}, "which needs no hub"


def test_the_commit_that_was_planned_is_brought_in(hub: type[Hub], tmp_path: Path) -> None:
    """Whatever the branch is by now, and whatever of another commit lies in the scratch."""
    branch = PretrainedParams(path="org/name", revision="dev")
    ctx = Context.local(tmp_path / "w")
    ctx.externals = branch.externals()
    hub.commit = "b" * 40
    other = ctx.scratch / "hub" / hub.commit
    other.mkdir(parents=True)
    (other / "merges.txt").write_text("of another commit")
    pretrained(branch, Inputs({}), ctx.out, ctx)
    assert f"org/name@{'a' * 40}" in (ctx.out / "README.md").read_text()
    assert (ctx.out / "merges.txt").read_text() == "a b"
    assert not (ctx.out / "pytorch_model.bin").exists()
    (panel,) = json.loads((ctx.observed / "panels.json").read_text())
    assert ["file", "pytorch_model.bin", "present", "left out"] in panel["rows"]


def test_a_disk_that_refuses_is_not_the_hubs_fault(hub: type[Hub], tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    params = PretrainedParams(path="org/name", revision="dev")
    ctx = Context.local(tmp_path / "w")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(Failure, match="is full: ") as found:
            pretrained(params, Inputs({}), ctx.out, ctx)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some space" in found.value.remedy


def test_a_chat_model_of_ours_stays_one_and_no_other_becomes_one(
    world: Path, elsewhere: Path, tmp_path: Path
) -> None:
    out = bring_in(world / "policy", tmp_path)
    assert is_chat(out)
    prompt = "and the owl?"
    answers = {generate_text(folder, prompt, 12, seed=1) for folder in (out, world / "policy")}
    assert len(answers) == 1
    (elsewhere / "README.md").write_text("---\ntags:\n- conversational\n---\n")
    assert is_chat(elsewhere) and not is_chat(bring_in(elsewhere, tmp_path / "other"))


def test_a_model_with_a_template_takes_chats(tmp_path: Path) -> None:
    """Its template and all its ends are those of the folder, whatever file they are in."""
    for family in CHAT_FAMILIES:
        folder = write_chat_model(tmp_path / family, family)
        out = bring_in(folder, tmp_path / f"{family}-imported")
        assert is_chat(out) is (family != "gpt2")
        theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (folder, out))
        assert ours.chat_template == theirs.chat_template
        ends = list(token_ids(folder, TOKENS[family].ends))
        found = GenerationConfig.from_pretrained(out)
        assert found.to_diff_dict() == GenerationConfig.from_pretrained(folder).to_diff_dict()
        listed = found.eos_token_id
        assert (listed if isinstance(listed, list) else [listed]) == ends
        config = json.loads((out / "config.json").read_text())["eos_token_id"]
        own = token_ids(folder, [TOKENS[family].eos])[0]
        assert config == ([own, *[i for i in ends if i != own]] if len(ends) > 1 else own)


def test_an_end_of_the_generation_config_may_be_the_tokenizers(
    elsewhere: Path, tmp_path: Path
) -> None:
    """As of chat models whose `config.json` still has the end of the base model."""
    end = open_tokenizer(elsewhere).eos_id
    edit(elsewhere, eos_token_id=7)
    (elsewhere / "generation_config.json").unlink()
    with pytest.raises(InputError, match=rf"is id {end}, eos_token_id of config\.json is 7"):
        open_tokenizer(elsewhere)
    (elsewhere / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 7]}))
    out = bring_in(elsewhere, tmp_path)
    assert open_tokenizer(out).eos_id == end
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == [end, 7]


def test_a_tokenizer_of_more_ids_than_the_model_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    config = json.loads((elsewhere / "tokenizer.json").read_text())
    more = [{**config["added_tokens"][0], "id": i, "content": f"<|{i}|>"} for i in range(KNOWN)]
    config["added_tokens"] += more
    (elsewhere / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"the tokenizer has .* ids, the model knows 320"):
        bring_in(elsewhere, tmp_path)


# --- on from there -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    texts = [f"{TEXTS[i % 2]} and {i}" for i in range(40)]
    with documents_writer(folder) as writer:
        for i, text in enumerate(texts):
            row = {"id": f"{i}", "text": text, "source": "s", "lang": "en", "meta": "{}"}
            writer.write(row)
    size = {"documents": len(texts), "characters": sum(map(len, texts))}
    nothing = {"documents": 0, "characters": 0}
    write_stats(folder, {"read": size, "kept": size, "dropped": nothing})
    return folder


def packed(documents: Path, tokenizer: Path, tmp_path: Path) -> Path:
    """Tokens of the documents."""
    ctx = Context.local(tmp_path / "tokens")
    edges = {"documents": documents, "tokenizer": tokenizer}
    artifacts: Any = {name: SimpleNamespace(path=path) for name, path in edges.items()}
    pack_tokens(TokenPackParams(eval_fraction=0.3), Inputs(artifacts), ctx.out, ctx)
    return ctx.out


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_with_the_models_own_tokenizer(
    family: str, documents: Path, tmp_path: Path
) -> None:
    base = bring_in(write_model(tmp_path / family, family), tmp_path / "base")
    tokens = packed(documents, base, tmp_path)
    store, auto = TokenStore(tokens), AutoTokenizer.from_pretrained(base)
    end = open_tokenizer(base).eos_id
    first = store.document(0).tolist()
    assert first == [*auto(auto.decode(first, skip_special_tokens=True))["input_ids"], end]
    params = PretrainParams.model_validate(
        {"model": {**shape(family), "mask_documents": True}, "train": {"global_batch_size": 4}}
    )
    upstream = {"init_from": PretrainedParams(path=str(base))}
    assert not list(params.check(upstream))
    assert params.estimate(upstream)["parameters"] == params.config(KNOWN).parameters
    others = {
        **upstream,
        "tokens[0]": TokenPackParams(),
        "tokens[0].tokenizer": TokenizerTrainParams(),
    }
    assert [str(problem) for problem in params.check(others)] == [
        "init_from: has 320 ids, and tokens[0] was packed with 4096 "
        "(pack the documents with its own tokenizer)"
    ]
    made = objective_of(params, (tokens,), init_from=base)
    model: Any = made.setup(Rank(), params.train, 0)["model"].module
    batch = made.collate([made.train_samples[0], made.train_samples[1]])
    ends = batch["tokens"] == end
    assert ends[:, 1:].any() and not batch["positions"][ends].any()
    with torch.no_grad():
        told = made.loss(model.eval(), batch)
        logits = load_language_model(base)(
            batch["tokens"], segments_BT=batch["segments"], positions_BT=batch["positions"]
        )
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum"
    )
    torch.testing.assert_close(told.reported, expected)
    made.export({"model": SimpleNamespace(module=model)}, tmp_path / "out")  # type: ignore[dict-item]
    assert_transformers_agree(tmp_path / "out")
    assert special_ids(tmp_path / "out") == special_ids(base)
    again = open_tokenizer(tmp_path / "out")
    figures = document_loss(load_language_model(tmp_path / "out"), tokens, again)
    assert figures["loss"] == pytest.approx(math.log(KNOWN), abs=0.5)
    (written,) = continuations(Rank(), tmp_path / "out", ("the cat",), 0)
    assert set(written) == {"prompt", "text"}


def test_the_bytes_of_an_epoch_are_those_of_its_documents(documents: Path, tmp_path: Path) -> None:
    """Padding has none, though id 0 stands for a byte here."""
    base = write_model(tmp_path / "base", "gpt2")
    tokens = packed(documents, base, tmp_path)
    params = PretrainParams.model_validate({"model": shape("gpt2"), "packing": "best_fit"})
    made = objective_of(params, (tokens,), base)
    model: Any = made.setup(Rank(), params.train, 0)["model"].module
    samples: Any = made.train_samples
    batch = made.collate([samples[i] for i in range(len(samples))])
    assert (batch["targets"] < 0).any() and open_tokenizer(base).byte_counts[0] == 1
    with torch.no_grad():
        counted = made.loss(model, batch).metrics["bytes"].item()
    store, auto = TokenStore(tokens), AutoTokenizer.from_pretrained(base)
    texts = [auto.decode(store.document(i)[:-1]) for i in range(store.documents)]
    assert counted == sum(len(text.encode()) for text in texts)


def test_tokens_of_another_model_are_told_apart(documents: Path, tmp_path: Path) -> None:
    """As many ids, other pieces."""
    base = write_model(tmp_path / "base", "qwen3")
    write_tokenizer(tmp_path / "other", [text[::-1] for text in TEXTS])
    tokens = packed(documents, tmp_path / "other", tmp_path)
    params = PretrainParams.model_validate({"model": shape("qwen3")})
    for tokenizer in (None, tmp_path / "other"):
        with pytest.raises(InputError, match=f"the tokens were packed with .* in {base}"):
            objective_of(params, (tokens,), tokenizer, base)
