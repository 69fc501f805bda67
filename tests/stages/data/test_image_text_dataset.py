"""Images with captions: what is written is read back, by us and by others, and damage is told."""

import json
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawn_images import encode, jpeg, png, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from image_text_shards import write_shards
from PIL import Image

from pipeline.errors import CorruptArtifact, InputError
from stages.data import image_text_dataset
from stages.data.image_text_dataset import (
    BadImage,
    ImageTextStore,
    Sample,
    decode_rgb,
    write_index,
)

KEYS = st.text("abcXYZ019_-", min_size=1, max_size=90)
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=30)
META = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9))
IMAGES = [png(1, 8, 8), jpeg(2, 9, 7), encode(scene(3, 5, 5), "WEBP")]
SAMPLES = st.builds(
    Sample,
    KEYS,
    st.sampled_from(IMAGES),
    st.lists(LINES, min_size=1, max_size=3).map(tuple),
    META,
)


def sample(number, captions=("one", "two")):
    meta = {"width": 64, "height": 48, "source": "drawn", "number": number}
    return Sample(f"key-{number}", png(number), captions, meta)


def store(folder, samples, **options):
    write_index(folder, {"train": write_shards(samples, folder, "train", **options)})
    return ImageTextStore(folder)


@settings(max_examples=25, deadline=None)
@given(st.lists(SAMPLES, max_size=9), st.integers(1, 4), st.integers(2_000, 9_000))
def test_what_is_written_is_read_back(tmp_path_factory, samples, shard_samples, shard_bytes):
    folder = tmp_path_factory.mktemp("store")
    found = store(folder, samples, shard_samples=shard_samples, shard_bytes=shard_bytes)
    assert len(found) == len(samples) and list(found) == samples
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    assert [found[at] for at in order] == [samples[at] for at in order]
    assert len(ImageTextStore(folder, "eval")) == 0


def test_shards_are_cut_by_samples_and_by_bytes_and_are_the_same_each_time(tmp_path):
    samples = [sample(number) for number in range(7)]
    size = image_text_dataset.stored_size(samples[0])
    for options, shards in [
        ({"shard_samples": 3}, [3, 3, 1]),
        ({"shard_bytes": 3 * size - 1}, [2, 2, 2, 1]),
        ({"shard_bytes": 1}, [1] * 7),
        ({}, [7]),
    ]:
        one, two = (tmp_path / f"{name}{len(shards)}" for name in "ab")
        found = store(one, [sample(0)] * 0 + samples, **options)
        store(two, samples, **options)
        assert [shard["samples"] for shard in found.index["splits"]["train"]["shards"]] == shards
        assert tree(one) == tree(two) and list(found) == samples


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_tar_programs_read_our_shards(tmp_path):
    samples = [sample(number) for number in range(3)]
    store(tmp_path, samples)
    with tarfile.open(tmp_path / "train-00000.tar") as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos[:3]] == ["key-0.png", "key-0.txt", "key-0.json"]
        assert all(info.mtime == info.uid == info.gid == 0 for info in infos)
        assert archive.extractfile(infos[3]).read() == samples[1].image
    subprocess.run(["tar", "tf", tmp_path / "train-00000.tar"], check=True, capture_output=True)


def test_webdataset_reads_our_shards_in_its_secure_mode(tmp_path):
    store(tmp_path, [sample(number) for number in range(5)], shard_samples=2)
    script = (
        "import sys, json, webdataset\n"
        "found = webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode('pil')\n"
        "print(json.dumps([[s['__key__'], s['png'].size, s['txt'], s['json']] for s in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "train-{00000..00002}.tar")],
        env={**os.environ, "WDS_SECURE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [[f"key-{n}", [64, 48], "one\ntwo", dict(sample(n).meta)] for n in range(5)]
    assert json.loads(done.stdout) == wanted


def test_threads_and_copies_in_other_processes_read_the_same(tmp_path):
    found = store(tmp_path, [sample(number) for number in range(20)], shard_samples=3)
    wanted = list(found)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert (
                list(pool.map(pickle.loads(pickle.dumps(found)).__getitem__, range(20))) == wanted
            )
    for outside in (-1, 20):
        with pytest.raises(IndexError):
            found[outside]


def test_more_shards_than_may_be_open_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_text_dataset, "_MAX_OPEN", 2)
    found = store(tmp_path, [sample(number) for number in range(6)], shard_samples=1)
    assert [s.key for s in found] == [s.key for s in found] == [f"key-{n}" for n in range(6)]


def test_bytes_that_are_not_those_of_the_index_are_never_a_sample(tmp_path):
    found = store(tmp_path, [sample(0), sample(1)])
    tar = tmp_path / "train-00000.tar"
    whole = tar.read_bytes()
    at = whole.index(b"key-1.txt")
    for damage in (b"key-2.txt", b"KEY-1.txt"):
        tar.write_bytes(whole.replace(b"key-1.txt", damage))
        with pytest.raises(CorruptArtifact, match="sample 1 of train does not match") as caught:
            found[1]
        assert caught.value.where == str(tar) and found[0] == sample(0)
    tar.write_bytes(whole[:at] + bytes(len(whole) - at))
    with pytest.raises(CorruptArtifact, match="sample 1"):
        found[1]
    tar.write_bytes(whole[:at])
    with pytest.raises(CorruptArtifact, match="sample 1"):
        found[1]
    with pytest.raises(CorruptArtifact, match=f"{at} bytes instead of {len(whole)}"):
        ImageTextStore(tmp_path)
    tar.unlink()
    with pytest.raises(CorruptArtifact, match="-1 bytes"):
        ImageTextStore(tmp_path)


def test_a_torn_or_foreign_index_is_told(tmp_path):
    store(tmp_path, [sample(0)])
    index = tmp_path / "index" / "train-00000.npy"
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(CorruptArtifact, match="unreadable index"):
        ImageTextStore(tmp_path)
    with pytest.raises(InputError, match="no split 'test'"):
        ImageTextStore(tmp_path, "test")
    (tmp_path / "index.json").write_text('{"schema": 1, "dtype": "uint16", "splits": {}}')
    with pytest.raises(InputError, match="not the index of an ImageText"):
        ImageTextStore(tmp_path)
    with pytest.raises(InputError, match="not an ImageText artifact"):
        ImageTextStore(tmp_path / "index")


@pytest.mark.parametrize(
    "wrong",
    [
        Sample("a.b", IMAGES[0], ("x",), {}),
        Sample("../a", IMAGES[0], ("x",), {}),
        Sample("", IMAGES[0], ("x",), {}),
        Sample("a", IMAGES[0], (), {}),
        Sample("a", IMAGES[0], ("x\ny",), {}),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, wrong):
    with pytest.raises(InputError):
        write_shards([wrong], tmp_path, "train")
    with pytest.raises(BadImage):
        write_shards([Sample("a", b"GIF89a", ("x",), {})], tmp_path, "train")


def test_transparent_images_stand_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    gray = Image.new("LA", (4, 4), (0, 0))
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0, 0, 0] * 3 + [9, 9, 9])
    for image, options, wanted in [
        (clear, {}, (255, 255, 255)),
        (half, {}, (255, 127, 127)),
        (gray, {}, (255, 255, 255)),
        (palette, {}, (9, 9, 9)),
        (palette, {"transparency": 3}, (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (Image.new("1", (4, 4), 1), {}, (255, 255, 255)),
        (Image.new("I;16", (4, 4), 0x8000), {}, (128, 128, 128)),
    ]:
        decoded = decode_rgb(encode(image, **options))
        assert decoded.mode == "RGB" and decoded.getpixel((1, 1)) == wanted, image.mode
    assert decode_rgb(encode(Image.new("CMYK", (4, 4)), "JPEG")).getpixel((0, 0)) == (255, 255, 255)


def test_images_stand_upright():
    image = scene(5, 32, 16)
    for orientation, wanted in [
        (1, image),
        (3, image.transpose(Image.Transpose.ROTATE_180)),
        (6, image.transpose(Image.Transpose.ROTATE_270)),
    ]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        decoded = decode_rgb(encode(image, exif=exif))
        assert decoded.size == wanted.size and decoded.tobytes() == wanted.tobytes()


def bomb(width, height):
    """A PNG of a few bytes that declares a huge image."""
    data = bytearray(png(0, 1, 1))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"text", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" + bytes(100)),
        *(png(1)[:-30], png(1)[:200], jpeg(1)[:-40], jpeg(1)[: len(jpeg(1)) // 2]),
        encode(scene(1), "GIF"),
        encode(scene(1), "WEBP")[:-20],
        bomb(8_192, 8_193),
        bomb(30_000, 30_000),
        bomb(2**31 - 1, 2**31 - 1),
    ],
)
def test_what_is_no_image_is_refused(data):
    said = set()
    for _ in range(2):
        with pytest.raises(BadImage) as caught:
            decode_rgb(bytes(data))
        said.add(str(caught.value))
    assert len(said) == 1 and " at 0x" not in said.pop()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(IMAGES), st.data())
def test_damaged_images_are_decoded_or_refused_and_nothing_else(image, data):
    at = data.draw(st.integers(0, len(image) - 1))
    damaged = image[:at] + data.draw(st.binary(max_size=4)) + image[at + 1 :]
    try:
        assert decode_rgb(damaged).mode == "RGB"
    except BadImage as error:
        assert str(error)
