"""Sources to records: what is found, in which order, and what is broken, however it is cut."""

import csv
import io
import json
import os
import random
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_images import jpeg, png

from pipeline.errors import InputError
from stages.curation.broken_files import BrokenFile
from stages.curation.folder_listing import LeftOut
from stages.images import image_sources
from stages.images.columns import ImageColumns
from stages.images.image_sources import list_files, split_files
from stages.images.records import content_digest, read_records

IMAGES = [png(number, 8, 8) for number in range(7)]


def records(source, columns=None):
    found = split_files(list_files([str(source)]))
    return [record for piece in found for record in read_records(piece, columns or ImageColumns())]


def summaries(found):
    return [(r.key, r.image, r.captions, r.meta, r.broken) for r in found]


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three pairs, one image below, one without a caption."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    (root / "a.PNG").write_bytes(IMAGES[0])
    (root / "a.txt").write_text("first\nsecond\n")
    (root / "a.json").write_text(json.dumps({"label": "x", "captions": ["third"]}))
    (root / "below" / "b.png").write_bytes(IMAGES[1])
    (root / "below" / "b.txt").write_bytes("\ufeffgrüßt\r\n".encode())
    (root / "c.jpeg").write_bytes(jpeg(3))
    (root / "note.md").write_text("no image")
    return root


def test_a_folder_gives_images_with_their_sidecar_files(folder):
    assert summaries(records(folder)) == [
        ("a", IMAGES[0], ("first", "second", "third"), {"label": "x"}, ""),
        ("below/b", IMAGES[1], ("grüßt",), {}, ""),
        ("c", jpeg(3), (), {}, ""),
    ]
    assert [r.place for r in records(folder)] == ["a.PNG", "below/b.png", "c.jpeg"]


def test_nothing_outside_the_folder_is_read(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(IMAGES[2])
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "d.png").symlink_to(tmp_path / "secret.png")
    (folder / "e.png").write_bytes(IMAGES[3])
    (folder / "e.txt").symlink_to("../secret.txt")
    (folder / "f.png").symlink_to("f.png")
    os.mkfifo(folder / "g.png")
    (folder / "h.png").symlink_to("a.PNG")
    found = {r.key: r for r in records(folder)}
    assert [found[key].broken for key in "deh"] == ["broken.path"] * 2 + [""]
    assert found["h"].image == IMAGES[0] and not found["d"].image
    unread = LeftOut()
    list_files([str(folder)], unread)
    assert unread == {"files .md": 1, "broken links": 1, "devices and pipes": 1}


MANIFEST = [{"file_name": f"images/{n}.png", "text": f"caption {n}", "label": n} for n in range(7)]


def write_manifest(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as stream:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number, data in enumerate(IMAGES):
        (tmp_path / "images" / f"{number}.png").write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_manifests_give_the_same_however_they_are_cut(images, suffix, count, monkeypatch):
    rows = [dict(row) for row in MANIFEST]
    rows[2]["text"] = 'with a "quote",\nanother line and ü\t'
    path = write_manifest(images / f"pairs.{suffix}", rows)
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", count)
    found = records(path, ImageColumns(meta=("label", "missing")))
    assert len(split_files(list_files([str(path)]))) == {1: 7, 2: 4, 3: 3, 7: 1, 100: 1}[count]
    assert [(r.key, r.image, r.captions) for r in found] == [
        (f"images/{n}", IMAGES[n], (rows[n]["text"],)) for n in range(7)
    ]
    assert [str(r.meta["label"]) for r in found] == [str(n) for n in range(7)]
    assert [r.place for r in found][-1] == f"pairs.{suffix}, record 7"


@pytest.mark.parametrize("count", [1, 2, 100])
def test_tars_give_the_same_however_they_are_cut(tmp_path, count, monkeypatch):
    files = [
        (f"sub/{n}.{ext}", content)
        for n, data in enumerate(IMAGES)
        for ext, content in [("png", data), ("txt", b"one\ntwo"), ("json", b'{"n": %d}' % n)]
    ]
    path = write_tar(tmp_path / "t.tar", files)
    whole = summaries(records(path))
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", count)
    assert (
        summaries(records(path))
        == whole
        == [(f"sub/{n}", data, ("one", "two"), {"n": n}, "") for n, data in enumerate(IMAGES)]
    )
    assert [p.first for p in split_files(list_files([str(path)]))] == list(range(0, 7, count))


def test_pieces_are_bounded_by_bytes_too(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(image_sources, "PIECE_BYTES", 1)
    assert [piece.names for piece in split_files(list_files([str(folder)]))] == [
        ("a.PNG",),
        ("below/b.png",),
        ("c.jpeg",),
    ]
    path = write_tar(tmp_path / "t.tar", [("a.png", b"1"), ("a.txt", b"2"), ("b.png", b"3")])
    assert [(p.start, p.end) for p in split_files(list_files([str(path)]))] == [
        (0, 2048),
        (2048, None),
    ]


def test_columns_may_be_named_and_must_be_there(images):
    rows = [{"where": "images/0.png", "short": "s", "long": ["l", 1, "m"]}]
    path = write_manifest(images / "p.jsonl", rows)
    found = records(path, ImageColumns("where", ("long", "short")))
    assert summaries(found) == [("images/0", IMAGES[0], ("l", "m", "s"), {}, "")]
    path = write_manifest(images / "p.csv", [{"where": "images/0.png", "short": "s"}])
    for columns, missing in [
        (ImageColumns(), "image_column to one of where, short"),
        (ImageColumns("where"), "caption_columns to one of where, short"),
        (ImageColumns("where", ("short", "long")), "caption_columns to one of"),
    ]:
        with pytest.raises(InputError, match="no column") as caught:
            records(path, columns)
        assert missing in caught.value.remedy and caught.value.where == str(path)


def test_parquet_may_hold_the_images_themselves(images):
    rows = [
        {"image": {"bytes": IMAGES[0], "path": "x.png"}, "caption": "a"},
        {"image": {"bytes": None, "path": "images/1.png"}, "caption": "b"},
        {"image": None, "caption": "c"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), images / "p.parquet")
    found = records(images / "p.parquet")
    assert [(r.key, r.image, r.broken) for r in found] == [
        ("0", IMAGES[0], ""),
        ("images/1", IMAGES[1], ""),
        ("2", b"", "broken.columns"),
    ]


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("images/none.png", "broken.image"),
        ("images", "broken.path"),
        ("", "broken.columns"),
        ("../outside.png", "broken.path"),
        ("images/../../outside.png", "broken.path"),
        ("/etc/hostname", "broken.path"),
        ("images/\0.png", "broken.path"),
        ("https://example.org/a.png", "broken.image"),
        ("x" * 5000, "broken.image"),
    ],
)
def test_a_path_that_leads_nowhere_or_outside_is_a_broken_record(images, name, rule):
    root = images / "images" / ".."
    (images.parent / "outside.png").write_bytes(IMAGES[0])
    rows = [{"image": name, "caption": "x"}, {"image": "images/0.png", "caption": "y"}]
    path = write_manifest(images / "p.jsonl", rows)
    for columns in (ImageColumns(), ImageColumns(root=str(root))):
        bad, good = records(path, columns)
        assert bad.broken == rule and bad.error and not bad.image
        assert good.image == IMAGES[0]


def test_broken_rows_stop_nothing(images):
    (images / "p.csv").write_text(
        "image,caption\nimages/0.png\n\nimages/1.png,a,b\nimages/2.png,c\n"
    )
    assert [r.broken for r in records(images / "p.csv")] == ["broken.columns"] * 2 + [""]
    (images / "p.csv").write_text(
        'image,caption\nimages/0.png,"open\nimages/1.png,b\nimages/2.png,c\n'
    )
    assert [(r.key, r.broken) for r in records(images / "p.csv")] == [
        ("0", "broken.columns"),
        ("images/1", ""),
        ("images/2", ""),
    ]
    good = json.dumps({"image": "images/0.png", "caption": "x"})
    (images / "p.jsonl").write_text(f'{good}\n[1]\n\n{{"image\n{"[" * 100_000}\n{good}\n')
    found = records(images / "p.jsonl")
    assert [r.broken for r in found] == ["", "broken.columns", *["broken.json"] * 2, ""]
    assert [r.place for r in found] == [f"p.jsonl, record {n}" for n in (1, 2, 4, 5, 6)]


def latin_strings(values):
    """Return a column of strings whose bytes are not checked."""
    edges = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.StringArray.from_buffers(
        len(values), pa.py_buffer(edges.tobytes()), pa.py_buffer(b"".join(values))
    )


@pytest.mark.parametrize("column", ["image", "caption", "label"])
def test_a_value_of_parquet_that_is_not_utf8_costs_its_row(images, column):
    """Check names, captions and metadata, also in the plan."""
    columns = {
        "image": [f"images/{n}.png".encode() for n in range(3)],
        "caption": [b"an owl", b"a heron", b"a gull"],
        "label": [b"x", b"y", b"z"],
    }
    columns[column][1] = b"\xe9\xff"
    path = images / "p.parquet"
    pq.write_table(pa.table({name: latin_strings(v) for name, v in columns.items()}), path)
    named = ImageColumns(meta=("label",))
    found = records(path, named)
    assert [r.broken for r in found] == ["", "broken.encoding", ""]
    assert found[1].error.startswith(f"{column}: ") and found[1].place == "p.parquet, record 2"
    assert [r.captions for r in found[::2]] == [("an owl",), ("a gull",)]
    assert content_digest(str(path), named)


def test_captions_and_metadata_of_parquet_may_be_bytes_and_not_finite(images):
    rows = [
        {"image": "images/0.png", "caption": [b"an owl", b"a bird"], "label": b"x", "score": 1.5},
        {"image": "images/1.png", "caption": [b"\xff"], "label": b"y", "score": 2.0},
        {"image": "images/2.png", "caption": [b"a gull"], "label": b"z", "score": float("nan")},
        {"image": "images/3.png", "caption": [b"a tern"], "label": b"\xff", "score": 0.0},
    ]
    path = write_manifest(images / "p.parquet", rows)
    found = records(path, ImageColumns(meta=("label", "score")))
    assert [(r.broken, r.captions, r.meta) for r in found] == [
        ("", ("an owl", "a bird"), {"label": "x", "score": 1.5}),
        ("broken.encoding", (), {}),
        ("", ("a gull",), {"label": "z"}),
        ("broken.encoding", (), {}),
    ]


def test_numbers_that_are_not_finite_and_lone_surrogates_cost_nothing(images):
    lines = ['{"image": "images/0.png", "caption": "one \\ud800", "score": NaN}']
    lines += ['{"image": "images/1.png", "caption": NaN, "score": Infinity}']
    (images / "p.jsonl").write_text("\n".join(lines))
    found = records(images / "p.jsonl", ImageColumns(meta=("score",)))
    assert [(r.broken, r.captions, r.meta) for r in found] == [
        ("", ("one \ufffd",), {}),
        ("", (), {}),
    ]


JAPANESE = "日本語の文章を読みます。今日は天気が良いので散歩に出かけました。{}番目の写真です"
CHINESE = "我们在公园里看到了一只白色的鸟，它站在湖边的石头上，今天天气很好。第{}张照片"


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
@pytest.mark.parametrize("count", [2, 100])
def test_captions_are_read_in_their_encoding(images, encoding, suffix, count, monkeypatch):
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", count)
    text = CHINESE if encoding == "gb18030" else JAPANESE
    captions = [text.format(number) for number in range(5)]
    rows = [{"image": f"images/{n}.png", "caption": caption} for n, caption in enumerate(captions)]
    if suffix == "txt":
        source = images / "images"
        for number, caption in enumerate(captions):
            (source / f"{number}.txt").write_text(caption, encoding)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        if suffix != "jsonl":
            delimiter = "," if suffix == "csv" else "\t"
            lines = [delimiter.join(values) for values in (rows[0], *(r.values() for r in rows))]
        source = images / f"p.{suffix}"
        source.write_text("\n".join(lines) + "\n", encoding)
    found = records(source)[:5]
    assert [(r.broken, *r.captions) for r in found] == [("", caption) for caption in captions]


def test_an_empty_manifest_has_no_records(images):
    for name in ("p.csv", "p.tsv", "p.jsonl"):
        (images / name).touch()
        assert records(images / name) == [] and content_digest(str(images / name), ImageColumns())


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_mutated_manifests_crash_nothing_and_keep_the_other_rows(images, suffix):
    """Flip single bytes: each piece ends with records or as a broken file."""
    rows = [{"image": f"images/{n}.png", "caption": f"caption {n}"} for n in range(7)]
    path = write_manifest(images / f"p.{suffix}", rows)
    whole, chance = path.read_bytes(), random.Random(0)
    expected = {(r.image, r.captions) for r in records(path)}
    for _ in range(60):
        data = bytearray(whole)
        data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            found = [(r.image, r.captions) for r in records(path) if not r.broken]
        except InputError:  # a broken file, or a header without the columns
            continue
        if suffix != "parquet":  # whose pages have a common encoding
            assert len(expected - set(found)) <= 2
        assert len(found) <= 8


def test_a_parquet_file_of_one_row_group_is_decoded_once(tmp_path, monkeypatch):
    rows = [{"image": IMAGES[n % 7], "caption": f"c{n}"} for n in range(400)]
    path = write_manifest(tmp_path / "p.parquet", rows)
    whole = summaries(records(path))
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", 5)
    decoded, plain = [], pq.ParquetFile.iter_batches

    def counted(file, *given, **named):
        for batch in plain(file, *given, **named):
            decoded.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    cut = split_files(list_files([str(path)]))
    assert len(cut) == 80
    found = [record for piece in cut for record in read_records(piece, ImageColumns())]
    assert summaries(found) == whole and sum(decoded) == 400
    every_third = [record for piece in cut[1::3] for record in read_records(piece, ImageColumns())]
    assert summaries(every_third) == [
        record for at in range(1, 80, 3) for record in whole[5 * at :][:5]
    ]
    assert summaries(read_records(cut[2], ImageColumns())) == whole[10:15], "and back"


def test_only_the_row_groups_of_a_piece_are_decoded(tmp_path):
    rows = [{"image": IMAGES[n % 7], "caption": f"c{n}"} for n in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=10)
    (whole,) = split_files(list_files([str(tmp_path / "p.parquet")]))
    data = bytearray((tmp_path / "p.parquet").read_bytes())
    for at in range(pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(4).num_columns):
        column = pq.ParquetFile(tmp_path / "p.parquet").metadata.row_group(4).column(at)
        data[column.data_page_offset : column.data_page_offset + 40] = bytes(40)
    (tmp_path / "p.parquet").write_bytes(data)
    for start in (0, 20, 50):
        piece = replace(whole, start=start, end=start + 10)
        captions = [record.captions for record in read_records(piece, ImageColumns())]
        assert captions == [(f"c{n}",) for n in range(start, start + 10)]
    with pytest.raises(BrokenFile):
        list(read_records(replace(whole, start=40, end=50), ImageColumns()))


def damaged_parquet(at):
    """Return a parquet file with its magic bytes and with zeros in its pages or its footer."""
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x" * 50] * 300, "caption": ["y"] * 300}), file)
    data = bytearray(file.getvalue())
    data[at : at + 30] = bytes(30)
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.parquet", b"PAR1"),
        ("p.parquet", damaged_parquet(-60)),
        ("p.parquet", damaged_parquet(4)),
        ("p.csv", b'image,"caption\n' + b"y" * 5000),
    ],
)
def test_a_damaged_manifest_is_a_broken_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenFile):
        records(tmp_path / name)
    assert content_digest(str(tmp_path / name), ImageColumns())


def test_a_manifest_of_fewer_rows_than_its_footer_states_is_a_broken_file(tmp_path):
    rows = [{"image": IMAGES[0], "caption": "c"}] * 30
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=10)
    data = bytearray((tmp_path / "p.parquet").read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    count = data.index(b"\x16\x3c", footer)  # 30, as Thrift writes it
    data[count + 1] = 0x40
    (tmp_path / "p.parquet").write_bytes(data)
    with pytest.raises(BrokenFile, match="the footer states"):
        records(tmp_path / "p.parquet")


def test_hostile_members_of_a_tar_are_counted_and_not_followed(tmp_path):
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = write_tar(
        tmp_path / "t.tar",
        [
            ("", link),
            ("a.txt", b"caption of nothing"),
            ("../b.png", IMAGES[0]),
            ("c.png", IMAGES[1]),
            ("c.txt", b"\xff\xfe\x00\xd8"),
            ("d.png", IMAGES[2]),
            ("d.json", b"[1]"),
            ("e.png", IMAGES[3]),
            ("e.json", b"[" * 100_000),
            ("f.png", IMAGES[4]),
            ("f.txt", b"good"),
        ],
    )
    assert [(r.key, r.broken) for r in records(path)] == [
        ("a.png", "broken.member"),
        ("a", "broken.image"),
        ("../b.png", "broken.member"),
        ("c", "broken.encoding"),
        ("d", "broken.json"),
        ("e", "broken.json"),
        ("f", ""),
    ]


@pytest.mark.parametrize("count", [1, 100])
def test_a_cut_tar_gives_what_is_whole_first(tmp_path, count, monkeypatch):
    monkeypatch.setattr(image_sources, "PIECE_RECORDS", count)
    files = [(f"{n}.png", data) for n, data in enumerate(IMAGES)]
    path = write_tar(tmp_path / "t.tar", files)
    path.write_bytes(path.read_bytes()[:3300])
    seen = []
    with pytest.raises(BrokenFile, match="truncated"):
        for piece in split_files(list_files([str(path)])):
            for record in read_records(piece, ImageColumns()):
                seen.append((record.key, record.broken))
    assert seen == [("0", ""), ("1", ""), ("2", "broken.member")]


def test_sources_that_are_not_there_are_the_users_error(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for name, words in [
        ("nowhere", "does not exist"),
        ("empty", "has no jpg, jpeg, png, webp file"),
        ("*.tar", "no file of a known type"),
        ("photos/note.md", "no file of a known type"),
    ]:
        with pytest.raises(InputError, match=words):
            list_files([str(tmp_path / name)])
    for name in ("pipe:cat t.tar |", "https://example.org/t.tar", "s3://bucket/t.tar"):
        with pytest.raises(InputError, match="does not exist"):
            list_files([name])


def test_a_glob_is_every_file_that_it_fits(images):
    for name in ("b.tar", "a.tar", "c.txt"):
        write_tar(images / name, [])
    found = list_files([str(images / "*"), str(images / "images")])
    assert [(p.source, p.place, p.origin) for p in found] == [
        (images.name, "a.tar", 0),
        (images.name, "b.tar", 0),
        ("images", "", 1),
    ]


def test_the_digest_is_of_all_that_is_read_wherever_it_lies(images, folder, tmp_path_factory):
    columns = ImageColumns()
    manifest = write_manifest(images / "p.jsonl", MANIFEST)
    tar = write_tar(images / "t.tar", [("a.png", IMAGES[0])])
    named = [folder, manifest, tar]
    before = [content_digest(str(path), columns) for path in named]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / images.name
    os.system(f"cp -r {images} {elsewhere}")
    moved = [elsewhere / path.relative_to(images) for path in named]
    assert [content_digest(str(path), columns) for path in moved] == before
    (folder / "below" / "b.txt").write_text("other")
    (images / "images" / "3.png").write_bytes(IMAGES[0])
    write_tar(tar, [("a.png", IMAGES[1])])
    after = [content_digest(str(path), columns) for path in named]
    assert all(a != b for a, b in zip(after, before, strict=True))
    (images / "images" / "3.png").unlink()
    assert content_digest(str(manifest), columns) not in (before[1], after[1])


def test_what_is_broken_stops_no_digest(images, folder):
    (folder / "d.png").symlink_to("../images/0.png")
    os.mkfifo(folder / "e.png")
    names = ["images/none.png", "../x.png", "images", "x" * 5000, "images/\0.png", 7, ""]
    rows = [{"image": name, "caption": "x"} for name in names]
    path = images / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = content_digest(str(path), ImageColumns())
    assert content_digest(str(folder), ImageColumns())
    (images / "images" / "none.png").write_bytes(IMAGES[0])
    assert content_digest(str(path), ImageColumns()) != before


def test_images_that_parquet_names_by_a_struct_are_in_the_digest(images):
    rows = [{"image": {"bytes": None, "path": "images/1.png"}, "caption": "b"}]
    path = images / "p.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    before = content_digest(str(path), ImageColumns())
    (images / "images" / "1.png").write_bytes(IMAGES[0])
    assert content_digest(str(path), ImageColumns()) != before


@pytest.mark.parametrize("suffix", ["lower", "upper"])
def test_sidecars_may_have_suffixes_in_capitals(tmp_path, suffix):
    (tmp_path / "A.JPG").write_bytes(jpeg(1, 8, 8))
    before = content_digest(str(tmp_path), ImageColumns())
    (tmp_path / f"A{getattr('.txt', suffix)()}").write_text("a caption")
    (tmp_path / f"A{getattr('.json', suffix)()}").write_text('{"site": "b"}')
    (tmp_path / "A.Txt").write_text("not read")
    unread = LeftOut()
    list_files([str(tmp_path)], unread)
    assert unread == {"files .txt": 1}
    (record,) = records(tmp_path)
    assert (record.captions, record.meta) == (("a caption",), {"site": "b"})
    assert content_digest(str(tmp_path), ImageColumns()) != before


def test_metadata_that_is_nested_too_deeply_costs_its_row(images):
    deep = "[" * 1000 + "]" * 1000
    path = images / "rows.jsonl"
    row = '{"image": "images/0.png", "caption": "c", "m": %s}\n'
    path.write_text(row % deep + row % "1")
    broken, whole = records(path, ImageColumns(meta=("m",)))
    assert (broken.broken, broken.error) == ("broken.value", "it is nested too deeply")
    assert (whole.broken, whole.meta) == ("", {"m": 1})
