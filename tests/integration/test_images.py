"""Images on Ray and under SIGKILL: the same bytes as one undisturbed process."""

import json
import subprocess
import sys
import time

import pytest
from drawn_images import png
from published_bytes import published_bytes

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.image_text import ImageTextParams, image_text
from stages.images import image_sources

pytestmark = pytest.mark.integration

OPTIONS = {
    "eval_fraction": 0.2,
    "resize": {"shortest_edge": 16},
    "dedup": {"max_hamming_distance": 2},
    "shard_samples": 80,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six hundred pairs, of which every tenth is there twice and some are broken."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number in range(600):
        data = png(number % 540, 32, 24)
        (folder / f"{number:03}.png").write_bytes(data[:-40] if number % 97 == 1 else data)
        (folder / f"{number:03}.txt").write_text(f"picture {number}")
    return folder


def run(folder, photos, **options):
    ctx = Context.local(folder)
    params = ImageTextParams(sources=(str(photos),), **OPTIONS, **options)
    image_text(params, Inputs({}), ctx.out, ctx)
    return ctx.out


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """What one process makes without Ray's tasks."""
    return run(tmp_path_factory.mktemp("made"), photos)


def test_two_workers_make_the_same_bytes(ray_session, photos, made, tmp_path, monkeypatch):
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", 75)
    on_ray = run(tmp_path, photos, workers={"num": 2, "cpus": 0.5})
    assert len(list((tmp_path / "scratch" / "annotated").glob("*[0-9]"))) == 8
    assert published_bytes(on_ray) == published_bytes(made) and len(published_bytes(made)) > 10


DRIVER = """
import json, sys
from pathlib import Path
from pipeline.context import Context
from pipeline.stage import Inputs
from stages.image_text import ImageTextParams, image_text
ctx = Context.local(Path(sys.argv[1]))
params = ImageTextParams(sources=(sys.argv[2],), **json.loads(sys.argv[3]))
image_text(params, Inputs({}), ctx.out, ctx)
"""


def test_a_driver_killed_anywhere_goes_on_to_the_same_bytes(photos, made, tmp_path):
    """Killed as every third piece or shard commits, then left alone."""
    arguments = [str(tmp_path), str(photos), json.dumps(OPTIONS)]
    command = [sys.executable, "-c", DRIVER, *arguments]
    seen, kills = 0, 0
    while not (tmp_path / "out" / "index.json").exists():
        driver = subprocess.Popen(command)
        while driver.poll() is None and len(list(tmp_path.glob("scratch/*/0*"))) <= seen:
            time.sleep(0.002)
        if driver.poll() is None:
            kills += 1
        driver.kill()
        driver.wait()
        seen = len(list(tmp_path.glob("scratch/*/0*"))) + 2
    assert kills >= 3 and published_bytes(tmp_path / "out") == published_bytes(made)
