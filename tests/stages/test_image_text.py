"""The stage: counts add up, nothing depends on how the work was cut, and mistakes are explained."""

import io
import json
import re
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawn_images import encode, jpeg, png, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.context import Context
from pipeline.errors import InputError, Interrupted
from pipeline.stage import Inputs
from stages.curation import annotation
from stages.data.image_text_dataset import ImageTextStore, decode_rgb
from stages.image_text import ImageTextParams, image_text
from stages.images import image_sources
from stages.images.transforms import resize_and_center_crop


def run(folder, *names, **options):
    """Run the stage on these sources in a fresh context of `folder`."""
    ctx = Context.local(folder)
    image_text(ImageTextParams(sources=tuple(map(str, names)), **options), Inputs({}), ctx.out, ctx)
    return ctx


def bytes_of(ctx):
    files = sorted(path for path in ctx.out.rglob("*") if path.is_file())
    return {path.relative_to(ctx.out).as_posix(): path.read_bytes() for path in files}


def stored(ctx, split="train"):
    return list(ImageTextStore(ctx.out, split))


def stats_of(ctx):
    return json.loads((ctx.out / "stats.json").read_text())


def dropped_rows(ctx):
    return pq.read_table(ctx.out / "dropped").to_pylist()


def reasons(ctx):
    return {row["key"]: row["rule"] for row in dropped_rows(ctx)}


def write_pairs(folder, images, caption="caption of {}"):
    """Write images and their captions by name; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (folder / name).write_bytes(data)
        text = caption.format(name)
        (folder / name).with_suffix(".txt").write_text(text)
    return folder


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def world(tmp_path):
    """Return a folder, a manifest and a tar: good pairs, copies, and one of each common fault."""
    folder = write_pairs(
        tmp_path / "photos",
        {
            **{f"{n}.png": png(n) for n in range(6)},
            "copy.png": png(2),
            "near.jpg": encode(scene(3), "JPEG", quality=85),
            "torn.png": png(9)[:-40],
            "text.jpg": b"not an image",
            "tall.png": png(10, 20, 90),
            "tiny.png": png(11, 8, 8),
        },
    )
    (folder / "mute.png").write_bytes(png(12))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg(20))
    rows = [
        {"image": "images/a.jpg", "caption": "a manifest's"},
        {"image": "images/none.jpg", "caption": "missing"},
        {"image": "../../outside.jpg", "caption": "outside"},
        {"image": "images/a.jpg"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tar(
        tmp_path / "cut.tar",
        [
            *(("x/0.png", png(30)), ("x/0.txt", b"zero\nnought"), ("x/0.json", b'{"label": 1}')),
            *(("x/1.png", png(31)), ("x/1.txt", b"one")),
        ],
    )
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"x/1.txt") + 10])
    return [folder, tmp_path / "pairs.jsonl", tmp_path / "cut.tar"]


FILTERS = {"width": (16, None), "max_aspect_ratio": 3.0}


def test_every_record_ends_in_one_place_with_its_reason(world, tmp_path):
    ctx = run(
        tmp_path / "w",
        *world,
        filters=FILTERS,
        dedup={"max_hamming_distance": 6, "max_color_distance": 8.0},
    )
    kept, stats = stored(ctx), stats_of(ctx)
    assert reasons(ctx) == {
        "copy": "exact_duplicate",
        "near": "near_duplicate",
        "torn": "broken.image",
        "text": "broken.image",
        "tall": "aspect",
        "tiny": "width",
        "mute": "broken.caption",
        "images/none": "broken.image",
        "../../outside": "broken.path",
        "images/a": "broken.caption",
        "x/1": "broken.member",
        "": "broken.file",
    }
    assert [s.key for s in kept][:6] == ["0", "1", "2", "3", "4", "5"]
    rows = dropped_rows(ctx)
    assert stats["read"]["samples"] == len(kept) + len(rows) == stats["kept"]["samples"] + len(rows)
    assert (
        stats["dropped"]["samples"]
        == len(rows)
        == sum(counts["samples"] for counts in stats["by_rule"].values())
    )
    captions = sum(len(s.captions) for s in kept)
    assert stats["kept"]["captions"] == captions
    assert stats["read"]["captions"] == captions + stats["dropped"]["captions"]
    by_key = {row["key"]: row for row in rows}
    assert by_key["tall"]["score"] == 4.5 and by_key["tiny"]["score"] == 8
    assert by_key["tall"]["captions"] == ["caption of tall.png"]
    assert (by_key["tall"]["width"], by_key["tall"]["height"]) == (20, 90)
    assert "truncated" in by_key[""]["reason"] and by_key[""]["place"] == "cut.tar"
    log = (ctx.attempt_dir / "log.txt").read_text()
    assert "broken: photos/torn.png" in log and "broken: " in log


def test_samples_say_what_they_are_and_where_they_were(world, tmp_path):
    ctx = run(tmp_path / "w", *world)
    found = {s.meta["key"]: s for s in stored(ctx)}
    assert found["x/0"].captions == ("zero", "nought") and found["x/0"].key == "x-0"
    assert dict(found["x/0"].meta) == {
        **{"width": 64, "height": 48, "source": tmp_path.name, "label": 1},
        **{"key": "x/0", "place": "cut.tar/x/0"},
    }
    assert found["0"].image == png(0) and found["images/a"].image == jpeg(20)
    index = json.loads((ctx.out / "index.json").read_text())
    assert index["image_size"] is None
    assert index["counts"]["read"] == index["counts"]["kept"] + index["counts"]["dropped"]


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([1 << 16, 1 << 20]))
def test_nothing_depends_on_how_the_sources_are_cut(tmp_path_factory, records, samples, size):
    folder = tmp_path_factory.mktemp("cut")
    pairs = write_pairs(folder / "p", {f"{n}.png": png(n % 9) for n in range(12)})
    options = {"eval_fraction": 0.3, "shard_samples": samples, "shard_bytes": size}
    whole = run(folder / "whole", pairs, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_sources, "PIECE_RECORDS", records)
        cut = run(folder / "cut", pairs, **options)
    assert bytes_of(cut) == bytes_of(whole)
    shards = ImageTextStore(cut.out).index["splits"]["train"]["shards"]
    assert all(shard["samples"] <= samples for shard in shards)


def test_a_stopped_stage_resumes_where_it_stopped(world, tmp_path, monkeypatch):
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", 2)
    whole = run(tmp_path / "whole", *world, shard_samples=2)
    annotated = []

    def stop(work, commit, annotate=annotation.annotate_pieces):
        annotate(work, commit)
        annotated.append(commit.name)
        if len(annotated) == 3:
            Context.local(tmp_path / "w").cancel_file.touch()

    monkeypatch.setattr(annotation, "annotate_pieces", stop)
    with pytest.raises(Interrupted):
        run(tmp_path / "w", *world, shard_samples=2)
    Context.local(tmp_path / "w").cancel_file.unlink()
    again = run(tmp_path / "w", *world, shard_samples=2)
    folder = again.scratch / "annotated"
    assert len(annotated) == len(set(annotated)) == len(list(folder.glob("*.seal")))
    assert bytes_of(again) == bytes_of(whole)


def test_of_copies_the_first_stays_in_the_order_of_sources(tmp_path):
    a = write_pairs(tmp_path / "a", {"x.png": png(1), "y.png": png(2)}, "same")
    b = write_pairs(tmp_path / "b", {"x.png": png(2), "z.png": png(3)}, "same")
    for names, keys in [((a, b), ["x", "y", "z"]), ((b, a), ["x", "z", "x"])]:
        ctx = run(tmp_path / f"w{names[0].name}", *names)
        found = stored(ctx)
        assert [s.meta["key"] for s in found] == keys
        assert len({s.key for s in found}) == 3  # a key that is there twice gets a mark
    loose = run(tmp_path / "loose", a, b, dedup={"exact": False})
    assert len(stored(loose)) == 4
    strict = run(tmp_path / "strict", a, b, dedup={"captions": True})
    assert len(stored(strict)) == 1 and set(reasons(strict).values()) == {
        "exact_duplicate",
        "caption_duplicate",
    }


def test_captions_outside_the_bounds_are_left_out_and_then_their_images(tmp_path):
    folder = write_pairs(tmp_path / "p", {"a.png": png(1), "b.png": png(2)}, "x")
    (folder / "a.txt").write_text(
        "word\nthree words here\nthree  words\x07 here\n\nfar too many words"
    )
    (folder / "b.txt").write_text("两个\n")
    filters = {"caption_words": (2, 3), "caption_characters": (None, 20)}
    ctx = run(tmp_path / "w", folder, filters=filters)
    assert [s.captions for s in stored(ctx)] == [("three words here",), ("两个",)]
    stats = stats_of(ctx)
    assert (stats["read"]["captions"], stats["kept"]["captions"]) == (4, 2)
    ctx = run(tmp_path / "v", folder, filters={"caption_words": (3, 3)})
    assert [(r["key"], r["rule"], r["score"]) for r in dropped_rows(ctx)] == [
        ("b", "caption_words", 2.0)
    ]


@pytest.mark.parametrize(
    ("resize", "sizes", "kinds"),
    [
        ({}, [(64, 48), (48, 64), (16, 12)], ["PNG", "JPEG", "PNG"]),
        ({"shortest_edge": 24}, [(32, 24), (24, 32), (16, 12)], ["PNG", "JPEG", "PNG"]),
        ({"longest_edge": 32}, [(32, 24), (24, 32), (16, 12)], ["PNG", "JPEG", "PNG"]),
        (
            {"longest_edge": 32, "upscale": True},
            [(32, 24), (24, 32), (32, 24)],
            ["PNG", "JPEG", "PNG"],
        ),
        ({"encode_format": "webp"}, [(64, 48), (48, 64), (16, 12)], ["WEBP"] * 3),
        (
            {"shortest_edge": 12, "encode_format": "jpeg"},
            [(16, 12), (12, 16), (16, 12)],
            ["JPEG"] * 3,
        ),
    ],
)
def test_images_are_resized_as_asked_and_else_left_alone(tmp_path, resize, sizes, kinds):
    data = {"a.png": png(1), "b.jpg": jpeg(2, 48, 64), "c.png": png(3, 16, 12)}
    folder = write_pairs(tmp_path / "p", data)
    ctx = run(tmp_path / "w", folder, resize=resize)
    found = stored(ctx)
    images = [Image.open(io.BytesIO(s.image)) for s in found]
    assert [image.size for image in images] == sizes and [i.format for i in images] == kinds
    assert [(s.meta["width"], s.meta["height"]) for s in found] == sizes
    for sample, (name, before) in zip(found, data.items(), strict=True):
        unchanged = Image.open(io.BytesIO(before))
        image = Image.open(io.BytesIO(sample.image))
        same = (unchanged.size, unchanged.format) == (image.size, image.format)
        assert (sample.image == before) == same, name
    assert stats_of(ctx)["resized"] == sum(
        s.image != before for s, before in zip(found, data.values(), strict=True)
    )
    index = json.loads((ctx.out / "index.json").read_text())
    assert index["image_size"] == resize.get("shortest_edge", resize.get("longest_edge"))


def test_resizing_is_bicubic_and_antialiased(tmp_path):
    folder = write_pairs(tmp_path / "p", {"a.png": png(1)})
    (sample,) = stored(run(tmp_path / "w", folder, resize={"longest_edge": 16}))
    wanted = scene(1).resize((16, 12), Image.Resampling.BICUBIC)
    assert decode_rgb(sample.image).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("long", "resize", "reason"),
    [
        (
            encode(Image.new("RGB", (1, 20_000))),
            {"encode_format": "webp"},
            "1 x 20000 pixels cannot be",
        ),
        (
            encode(Image.new("RGB", (70_000, 1))),
            {"encode_format": "jpeg"},
            "70000 x 1 pixels cannot be",
        ),
        (
            encode(Image.new("RGB", (2, 9_000))),
            {"shortest_edge": 256, "upscale": True},
            "256 x 1152000",
        ),
    ],
    ids=["webp", "jpeg", "enlarged"],
)
def test_an_image_that_no_file_can_hold_is_dropped(tmp_path, long, resize, reason):
    write_pairs(tmp_path / "p", {"a.png": png(0, 40, 60), "long.png": long})
    ctx = run(tmp_path / "run", tmp_path / "p", resize=resize)
    assert [sample.key for sample in stored(ctx)] == ["a"]
    (row,) = dropped_rows(ctx)
    assert (row["key"], row["rule"]) == ("long", "broken.image")
    assert row["reason"].startswith(reason)


def write_caption_rows(folder, order):
    """Write a manifest with one row per caption of three images, and return its path."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [f"{n}.png,about {n} in words {k}" for n, k in order]
    (folder / "rows.csv").write_text("\n".join(["filepath,title", *rows, "2.png,about 2", ""]))
    return folder / "rows.csv"


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("count", [4, 256])
def test_captions_of_rows_of_one_image_are_merged(tmp_path, interleaved, count, monkeypatch):
    """Check the captions, the counts and the report, wherever the manifest is cut."""
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", count)
    order = [(n, k) for n in range(3) for k in range(5)]
    order = sorted(order, key=lambda pair: pair[::-1]) if interleaved else order
    manifest = write_caption_rows(tmp_path, [*order, (0, 0)])
    ctx = run(tmp_path / "w", manifest)
    found = {sample.key: sample.captions for sample in stored(ctx)}
    expected = {str(n): tuple(f"about {n} in words {k}" for k in range(5)) for n in range(3)}
    assert found == expected | {"2": (*expected["2"], "about 2")}
    stats = stats_of(ctx)
    assert stats["read"] == {"samples": 17, "captions": 17}
    assert stats["kept"] == {"samples": 3, "captions": 16}
    assert stats["by_rule"] == {"merged": {"samples": 14, "captions": 1}}
    results = json.loads((ctx.observed / "results.json").read_text())
    assert (results["captions"], results["left_out"], results["duplicates"]) == (16, 0, 0)


def test_captions_of_other_images_with_equal_bytes_are_not_merged(tmp_path):
    """Check that placeholders of a failed download do not collect captions."""
    pairs = write_pairs(tmp_path / "p", {"a.png": png(1), "b.png": png(1)})
    ctx = run(tmp_path / "w", pairs)
    assert [sample.captions for sample in stored(ctx)] == [("caption of a.png",)]
    assert reasons(ctx) == {"b": "exact_duplicate"}


def test_captions_of_equal_images_within_parquet_are_merged(tmp_path):
    rows = [{"image": png(n), "caption": f"{n} {k}"} for k in range(2) for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    ctx = run(tmp_path / "w", tmp_path / "p.parquet")
    assert [sample.captions for sample in stored(ctx)] == [("0 0", "0 1"), ("1 0", "1 1")]
    ctx = run(tmp_path / "v", tmp_path / "p.parquet", dedup={"exact": False})
    assert [sample.captions for sample in stored(ctx)] == [("0 0",), ("1 0",), ("0 1",), ("1 1",)]


def test_files_that_are_not_read_are_reported(tmp_path):
    folder = write_pairs(tmp_path / "p", {f"{n}.png": png(n) for n in range(3)})
    for name in ("a.gif", "b.tif", "__MACOSX/._1.png", "notes.txt", "list.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    ctx = run(tmp_path / "w", folder)
    (panel,) = (
        panel
        for panel in json.loads((ctx.observed / "panels.json").read_text())
        if panel["title"] == "Not read"
    )
    assert dict(panel["rows"]) == {
        "files .gif": 1,
        "files .tif": 1,
        "files .jsonl": 1,
        "folders named __MACOSX": 1,
        "files .txt without an image of their name": 1,
    }
    (warning,) = json.loads((ctx.observed / "warnings.json").read_text())
    assert warning["message"].startswith("5 files or folders of the sources are not read")


def test_three_sources_of_one_name_have_keys_of_their_own(tmp_path):
    folders = [
        write_pairs(tmp_path / where / "photos", {"a.png": png(n)}) for n, where in enumerate("xyz")
    ]
    ctx = run(tmp_path / "run", *folders)
    keys = [sample.key for sample in stored(ctx)]
    assert len(set(keys)) == 3
    assert [key.split("-")[0] for key in keys] == ["a"] * 3


def test_what_is_held_out_is_a_matter_of_keys_alone(tmp_path):
    a = write_pairs(tmp_path / "a", {f"{n}.png": png(n, 16, 12) for n in range(60)})
    ctx = run(tmp_path / "w", a, eval_fraction=0.25)
    held = {s.key for s in stored(ctx, "eval")}
    assert 8 <= len(held) <= 24 and len(stored(ctx)) == 60 - len(held)
    other = write_pairs(tmp_path / "b", {f"{n}.png": png(n, 16, 12) for n in range(30, 90)})
    again = {s.key for s in stored(run(tmp_path / "v", other, eval_fraction=0.25), "eval")}
    shared = {str(n) for n in range(30, 60)}
    assert held & shared == again & shared
    third = {s.key for s in stored(run(tmp_path / "u", a, eval_fraction=0.25, seed=1), "eval")}
    assert third != held


def test_what_belongs_together_is_held_out_together(tmp_path):
    files = [
        (f"{n}.{ext}", content)
        for n in range(40)
        for ext, content in [
            ("png", png(n, 16, 12)),
            ("txt", b"x"),
            ("json", json.dumps({"concept": n // 4, "set": "Val" if n < 3 else "train"}).encode()),
        ]
    ]
    tar = write_tar(tmp_path / "t.tar", files)
    ctx = run(tmp_path / "w", tar, eval_fraction=0.4, eval_group_field="concept")
    train, held = ({s.meta["concept"] for s in stored(ctx, name)} for name in ("train", "eval"))
    assert train and held and not train & held
    ctx = run(tmp_path / "v", tar, split_field="set")
    assert [s.key for s in stored(ctx, "eval")] == ["0", "1", "2"]


def test_sources_may_be_held_out_as_a_whole(tmp_path):
    a = write_pairs(tmp_path / "a", {"x.png": png(1), "y.png": png(2)})
    b = write_pairs(tmp_path / "b", {"z.png": png(3), "copy.png": png(1)})
    ctx = run(tmp_path / "w", a, eval_sources=(str(b),))
    assert [s.meta["key"] for s in stored(ctx)] == ["x", "y"]
    assert [s.meta["key"] for s in stored(ctx, "eval")] == ["z"]


def test_too_much_that_is_broken_is_a_failure_if_asked(world, tmp_path):
    with pytest.raises(InputError, match="more than max_broken allows") as caught:
        run(tmp_path / "w", *world, max_broken=2)
    assert "photos/" in caught.value.where
    run(tmp_path / "v", *world, max_broken=20)


@pytest.mark.parametrize(
    ("options", "words", "remedy"),
    [
        ({"filters": {"width": (1000, None)}}, "none of 2 images is kept", "loosen"),
        ({"split_field": "set"}, "all 2 images are held out", "hold out fewer"),
        ({"caption_columns": ("none",)}, "dropped 2 by broken.caption", "log"),
    ],
)
def test_nothing_left_is_explained(tmp_path, options, words, remedy):
    files = [
        (f"{n}.{ext}", content)
        for n in range(2)
        for ext, content in [
            ("png", png(n)),
            ("json", b'{"set": "eval", "captions": "x"}'),
        ]
    ]
    with pytest.raises(InputError, match=words) as caught:
        run(tmp_path / "w", write_tar(tmp_path / "t.tar", files), **options)
    assert remedy in caught.value.remedy


def test_hostile_names_captions_and_metadata_reach_no_terminal(tmp_path):
    deep = b'{"a": ' + b"[" * 985 + b"]" * 985 + b"}"
    files = [
        *(("a\x1b[2J.png", png(1)), ("a\x1b[2J.txt", b"escape")),
        *((b"b\xff.png".decode("utf-8", "surrogateescape"), png(2)), ("b.txt", b"alone")),
        *(
            ("c.png", png(3)),
            ("c.txt", b"\xff\xfeo\x00\x00\xd8"),
        ),
        *(("d.png", png(4)), ("d.txt", "one\x1b[31m \u202etwo\r\n\x00".encode())),
        *(("e.png", png(5)), ("e.txt", b"deep"), ("e.json", deep)),
        *(("f.png", png(6)), ("f.txt", b"x"), ("f.json", b'{"s": "\\ud800\\u001b", "n": 1e999}')),
    ]
    tar = write_tar(tmp_path / "t.tar", files)
    odd = tmp_path / b"odd\xff\x07".decode("utf-8", "surrogateescape")
    write_pairs(odd, {b"g\xfe.png".decode("utf-8", "surrogateescape"): png(7)}, "good")
    ctx = run(tmp_path / "w", tar, odd, split_field="s")
    found = {s.key: s for s in stored(ctx)}
    assert found["d"].captions == ("one two",) and found["f"].meta["s"] == "\ufffd\x1b"
    assert found["f"].meta["n"] is None
    assert {"d", "f", "g-udcfe"} <= set(found) and reasons(ctx)["c"] == "broken.encoding"
    stats = stats_of(ctx)
    assert stats["read"]["samples"] == stats["kept"]["samples"] + stats["dropped"]["samples"]
    shown = [json.loads(path.read_text()) for path in ctx.observed.glob("*s.json")]
    shown += [dropped_rows(ctx), (ctx.attempt_dir / "log.txt").read_text(), stats]
    assert not re.search(
        "[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", json.dumps(shown, ensure_ascii=False)
    )


def test_the_report_shows_counts_sizes_and_captions(world, tmp_path):
    ctx = run(tmp_path / "w", *world, dedup={"max_hamming_distance": 6, "max_color_distance": 8.0})
    panels = {p["title"]: p for p in json.loads((ctx.observed / "panels.json").read_text())}
    steps = dict(panels["Images: samples"]["steps"])
    assert (
        steps["kept"]
        == len(stored(ctx))
        == sum(count for name, count in steps.items() if name != "kept")
    )
    assert sum(panels["Shorter side of kept images, pixels"]["counts"]) == steps["kept"]
    assert {
        "kept": "2.png: caption of 2.png",
        "dropped": "copy.png: caption of copy.png",
    } in panels["Dropped duplicates"]["items"]
    assert panels["Captions"]["items"][0]["place"] == "0.png"
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["images"] == steps["kept"] and results["duplicates"] == 2


def problems(**options):
    options = {"sources": ("a",), **options}
    return [problem.key for problem in ImageTextParams(**options).check({})]


def test_settings_that_cannot_work_are_named():
    assert problems() == []
    assert problems(sources=("a", "b"), eval_sources=("a",)) == ["sources"]
    assert problems(split_field="x", eval_fraction=0.1) == ["split_field"]
    assert problems(eval_group_field="x") == ["eval_group_field"]
    assert problems(meta_columns=("x", "x")) == ["meta_columns"]
    assert problems(filters={"width": (9, 3), "caption_words": (2, 1)}) == [
        "filters.width",
        "filters.caption_words",
    ]
    assert problems(resize={"shortest_edge": 3, "longest_edge": 3}) == ["resize"]
    assert problems(resize={"upscale": True}) == ["resize.upscale"]


def test_content_decides_and_the_cost_is_estimated(tmp_path):
    a = write_pairs(tmp_path / "a" / "p", {"x.png": png(1)})
    b = write_pairs(tmp_path / "b" / "p", {"x.png": png(1)})
    one, two = (ImageTextParams(sources=(str(path),)) for path in (a, b))
    assert one.externals() == two.externals() and list(one.externals()) == ["sources.0"]
    held = ImageTextParams(sources=(str(a),), eval_sources=(str(b),))
    assert list(held.externals()) == ["sources.0", "eval_sources.0"]
    assert one.estimate({})["disk_bytes"] == len(png(1))
    assert ImageTextParams(sources=("nowhere",)).estimate({}) == {}


@pytest.fixture
def clip_folder(tmp_path):
    """Return a CLIP folder with random weights and a tokenizer."""
    import tiny_clip

    from stages.models.clip.conversion_clip import save_clip
    from stages.models.clip.modeling_clip import CLIP

    lines = [f"caption of {name}.png {number}" for number, name in enumerate("abcdefgh")]
    tiny_clip.write_tokenizer(tmp_path / "world" / "tokenizer", lines * 9, 300)
    torch.manual_seed(0)
    model = tiny_clip.lively(CLIP(tiny_clip.shape_of(tmp_path / "world")))
    save_clip(model, tmp_path / "clip", tmp_path / "world" / "tokenizer")
    return tmp_path / "clip"


def test_pairs_that_a_clip_finds_unlike_go(clip_folder, tmp_path, monkeypatch):
    from stages.contrastive.caption_tokenizer import encode_captions
    from stages.contrastive.pair_dataset import normalize_pixels
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
    from stages.models.clip.conversion_clip import load_clip

    folder = write_pairs(tmp_path / "p", {f"{n}.png": png(n) for n in range(20)})
    clip, words = load_clip(clip_folder), Tokenizer(clip_folder)
    cosines = np.empty(20)
    for n in range(20):
        text = encode_captions(words, [f"caption of {n}.png"], clip.config.text, trim=False)
        with torch.inference_mode():
            crop = np.asarray(resize_and_center_crop(scene(n), 24))
            image_E = clip.encode_image(normalize_pixels([crop], torch.device("cpu")))[0]
            cosines[n] = image_E @ clip.encode_text(text)[0]
    least = float(np.median(cosines))
    assert np.ptp(cosines) > 0.01
    edges = Inputs({"model": SimpleNamespace(path=clip_folder)})
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", 7)
    ctx = Context.local(tmp_path / "w")
    params = ImageTextParams(sources=(str(folder),), filters={"min_clip_score": least})
    image_text(params, edges, ctx.out, ctx)
    assert {s.key for s in stored(ctx)} == {str(n) for n in range(20) if cosines[n] >= least}
    rows = {row["key"]: row for row in dropped_rows(ctx)}
    assert len(rows) == 10 and {row["rule"] for row in rows.values()} == {"clip_score"}
    for key, row in rows.items():
        assert row["score"] == pytest.approx(cosines[int(key)], abs=1e-4)
    panels = json.loads((ctx.observed / "panels.json").read_text())
    (spread,) = [p for p in panels if p["title"] == "Cosine similarity of image and caption"]
    assert sum(spread["counts"]) == 20 and spread["thresholds"] == [least]


def test_a_score_and_the_model_that_gives_it_go_together(tmp_path):
    folder = write_pairs(tmp_path / "p", {"a.png": png(1)})
    with pytest.raises(InputError, match="need each other"):
        run(tmp_path / "w", folder, filters={"min_clip_score": 0.2})
    edges = Inputs({"model": SimpleNamespace(path=tmp_path)})
    ctx = Context.local(tmp_path / "v")
    with pytest.raises(InputError, match="need each other"):
        image_text(ImageTextParams(sources=(str(folder),)), edges, ctx.out, ctx)
