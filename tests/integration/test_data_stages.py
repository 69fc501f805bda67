"""Data stages on Ray and under SIGKILL: the same bytes as one undisturbed process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from chat_files import messages, observed, run_stage, write_rows
from published_bytes import published_bytes

from pipeline.atomic_io import write_atomic
from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs, Workers
from stages.clean import CleanParams, clean
from stages.data.documents import read_stats
from stages.distributed.shard_tasks import run_shards
from stages.text.dedup import hash_join
from stages.tokenize import TokenizerTrainParams, TokenPackParams, pack_tokens, train_tokenizer

pytestmark = pytest.mark.integration

VOCABULARY = (
    "the of and to that have with be reader returns opens closed file path string value number "
    "every object given between before after other result error while until because"
)
WORKERS = {"num": 2, "cpus": 0.5}


def prose(seed):
    chance = random.Random(seed)
    words = [
        chance.choice(VOCABULARY.split()) + chance.choice("abcde") * (i % 4 == 0) for i in range(80)
    ]
    return ". ".join(" ".join(words[i : i + 8]) for i in range(0, 80, 8))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten files of which each is a shard: see `clean_params`."""
    folder = tmp_path_factory.mktemp("data") / "corpus"
    folder.mkdir()
    for number in range(10):
        texts = [prose(seed % 70) for seed in range(number * 10, number * 10 + 10)]
        padding = json.dumps({"text": "pad " * 600_000}) if number % 3 == 0 else ""
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, padding]))
    return folder


def run(stage, folder, params, **inputs):
    ctx = Context.local(folder)
    artifacts = {name: SimpleNamespace(path=path) for name, path in inputs.items()}
    stage(params, Inputs(artifacts), ctx.out, ctx)
    return ctx


@pytest.fixture(scope="module")
def cleaned(corpus, tmp_path_factory):
    """What one process makes without Ray's tasks."""
    folder = tmp_path_factory.mktemp("cleaned")
    return run(clean, folder, CleanParams(sources=(str(corpus),))).out


def test_two_workers_make_the_same_bytes(ray_session, corpus, cleaned, tmp_path):
    params = CleanParams(sources=(str(corpus),), workers=WORKERS)
    on_ray = run(clean, tmp_path / "clean", params)
    assert published_bytes(on_ray.out) == published_bytes(cleaned)
    tokenizer = run(
        train_tokenizer, tmp_path / "t", TokenizerTrainParams(vocab_size=400), documents=cleaned
    ).out
    stores = [
        run(
            pack_tokens,
            tmp_path / f"pack-{number}",
            TokenPackParams(workers={"num": number, "cpus": 0.5}),
            documents=cleaned,
            tokenizer=tokenizer,
        )
        for number in (1, 2)
    ]
    assert published_bytes(stores[0].out) == published_bytes(stores[1].out)


def test_two_workers_read_the_same_conversations(ray_session, tmp_path):
    """Parts of one file and broken rows included; each file is larger than a shard."""
    chance = random.Random(0)
    for number in range(2):
        rows = [messages(prose(chance.randrange(999)), prose(seed) * 40) for seed in range(320)]
        write_rows(tmp_path / "chats" / f"{number}.jsonl", [*rows, '{"messages"', messages("x")])
    one = run_stage("conversations", tmp_path / "one", tmp_path / "chats")
    two = run_stage("conversations", tmp_path / "two", tmp_path / "chats", workers=WORKERS)
    assert len(list((tmp_path / "two" / "scratch" / "annotated").glob("*.seal"))) > 2
    assert published_bytes(one.out) == published_bytes(two.out)
    assert observed(one, "results") == observed(two, "results")
    assert observed(one, "panels") == observed(two, "panels")


def test_two_workers_cut_the_same_text_however_the_hashes_are_cut(
    ray_session, corpus, tmp_path, monkeypatch
):
    dedup = {
        "verify": True,
        "min_repeated_line": 20,
        "min_repeated_substring": 20,
        "min_remaining": 1,
    }
    options = {"sources": (str(corpus),), "dedup": dedup}
    alone = run(clean, tmp_path / "alone", CleanParams(**options))
    assert read_stats(alone.out)["removed"]["characters"] > 0
    monkeypatch.setattr(hash_join, "RECORDS_PER_TASK", 200)
    monkeypatch.setattr(hash_join, "FORESTS_PER_MERGE", 2)
    on_ray = run(clean, tmp_path / "on-ray", CleanParams(**options, workers=WORKERS))
    assert len(list((on_ray.scratch / "near" / "linked").iterdir())) > 4
    assert published_bytes(on_ray.out) == published_bytes(alone.out)


def test_a_workers_user_error_keeps_its_words(ray_session, corpus, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.csv").write_text("words,number\none,1\n")
    params = CleanParams(sources=(str(tmp_path / "bad"),), workers=WORKERS)
    with pytest.raises(InputError, match="no column 'text'") as caught:
        run(clean, tmp_path / "w", params)
    assert type(caught.value) is InputError and caught.value.where.endswith("a.csv")
    assert "words" in caught.value.remedy


def die_once(work, commit):
    """The first process that gets work 2 is killed on the spot."""
    mark = commit.with_name("died")
    if work == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write_atomic(commit, str(work), durable=False)


def test_a_killed_worker_costs_its_shard_alone(ray_session, tmp_path):
    ctx = Context.local(tmp_path)
    works = list(range(5))
    workers = Workers(num=2, cpus=0.5)
    commits = run_shards(die_once, works, ctx.scratch / "s", workers=workers, ctx=ctx)
    assert [int(commit.read_text()) for commit in commits] == works
    assert (ctx.scratch / "s" / "died").exists()


DRIVER = """
import sys
from pathlib import Path
from pipeline.context import Context
from pipeline.stage import Inputs
from stages.clean import CleanParams, clean
ctx = Context.local(Path(sys.argv[1]))
clean(CleanParams(sources=(sys.argv[2],)), Inputs({}), ctx.out, ctx)
"""


def test_a_driver_killed_anywhere_goes_on_to_the_same_bytes(corpus, cleaned, tmp_path):
    """Killed as each next shard commits, then once more while it writes; then left alone."""
    annotated, out = tmp_path / "scratch" / "annotated", tmp_path / "out"
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(corpus)]
    seen = 0
    while not (out / "documents").exists():
        driver = subprocess.Popen(command)
        while driver.poll() is None and not (out / "documents").exists():
            if len(list(annotated.glob("*.seal"))) > seen:
                break
            time.sleep(0.002)
        driver.kill()
        driver.wait()
        seen = len(list(annotated.glob("*.seal"))) + 1
    subprocess.run(command, check=True)
    assert published_bytes(out) == published_bytes(cleaned)
