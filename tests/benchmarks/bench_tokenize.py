"""Tokenizing and packing against the encoder alone, and against datatrove's DocumentTokenizer.

    python tests/benchmarks/bench_tokenize.py [MEGABYTES [REPEATS]]

The sources of the running Python installation, repeated up to MEGABYTES (50) of text, in parquet;
a BPE tokenizer of 8,192 ids. All on two processes, in turns, medians of REPEATS (5):

    pack              the stage `tokenize.pack`: read, encode, split, shuffle all documents, write
    encoder           SentencePiece's encoder on the same texts, which two processes already hold
    DocumentTokenizer datatrove's reader and tokenizer with two local workers, which shuffles within
                      each worker; left out where datatrove is not installed

Ray, and the processes of the encoder, are started before; datatrove starts its own each time, as
it always does. What that costs it is measured on a document each and shown.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
VOCABULARY, PROCESSES = 8192, 2

_held: list[str] = []


def installed_texts(size: int) -> Iterator[str]:
    """Sources of this installation, again and again, until they have that many bytes."""
    from stages.text.python_docs.installed_files import installed_files

    files = [f.path for f in installed_files() if f.place.endswith(".py") and f.size < 1 << 16]
    for path in cycle(files):
        text = Path(path).read_text(errors="replace")
        yield text
        size -= len(text.encode())
        if size < 0:
            return


def write_documents(folder: Path, texts: list[str]) -> None:
    from stages.data.documents import documents_writer, write_stats

    with documents_writer(folder) as writer:
        for number, text in enumerate(texts):
            row = {"id": str(number), "text": text, "source": "python", "lang": "en", "meta": "{}"}
            writer.write(row)
    size = {"documents": len(texts), "characters": sum(map(len, texts))}
    nothing = {"documents": 0, "characters": 0}
    write_stats(folder, {"read": size, "kept": size, "dropped": nothing})


def train_tokenizer(folder: Path, texts: list[str]) -> None:
    from stages.data.tokenizers.tokenizer_training import (
        export_tokenizer,
        split_lines,
        train_sentencepiece,
    )

    lines, characters = [], 5_000_000
    for text in texts:
        lines += list(split_lines(text))
        characters -= len(text)
        if characters < 0:
            break
    folder.mkdir()
    export_tokenizer(train_sentencepiece(lines, VOCABULARY), folder)


def hold(documents: Path, tokenizer: Path, share: int) -> int:
    """Keep every second text in this process; how many there are."""
    from stages.data.documents import Documents
    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

    _held[:] = [d.text for i, d in enumerate(Documents(documents)) if i % PROCESSES == share]
    globals()["_tokenizer"] = Tokenizer(tokenizer)
    return len(_held)


def encode_held() -> int:
    """Encode what this process holds; how many tokens that are."""
    return sum(map(len, globals()["_tokenizer"].encode_batch(_held)))


def packing(documents: Path, tokenizer: Path, place: Path) -> Callable[[], int]:
    from pipeline.context import Context
    from pipeline.stage import Inputs, Workers
    from stages.data.token_store import TokenStore
    from stages.tokenize import TokenPackParams, pack_tokens

    inputs = Inputs(
        {"documents": SimpleNamespace(path=documents), "tokenizer": SimpleNamespace(path=tokenizer)}
    )
    params = TokenPackParams(workers=Workers(num=PROCESSES))

    def run() -> int:
        shutil.rmtree(place, ignore_errors=True)
        ctx = Context.local(place)
        pack_tokens(params, inputs, ctx.out, ctx)
        stores = [TokenStore(ctx.out, split) for split in ("train", "eval")]
        return sum(store.tokens - store.documents for store in stores)

    return run


def encoding(documents: Path, tokenizer: Path) -> Callable[[], int]:
    """Each process is one of its own pool, for a pool of two may give both halves to one."""
    pools = [ProcessPoolExecutor(1) for _ in range(PROCESSES)]
    for share, pool in enumerate(pools):
        pool.submit(hold, documents, tokenizer, share).result()
    return lambda: sum(job.result() for job in [pool.submit(encode_held) for pool in pools])


def datatroves(documents: Path, tokenizer: Path, place: Path) -> Callable[[], int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()

    def run() -> int:
        shutil.rmtree(place, ignore_errors=True)
        LocalPipelineExecutor(
            [
                ParquetReader(str(documents)),
                DocumentTokenizer(
                    str(place / "out"),
                    local_working_dir=str(place / "work"),
                    tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
                    eos_token="</s>",
                    seed=0,
                ),
            ],
            tasks=PROCESSES,
            workers=PROCESSES,
            logging_dir=str(place / "logs"),
        ).run()
        tokens = sum(path.stat().st_size for path in (place / "out").glob("*.ds")) // 2
        ends = sum(path.stat().st_size for path in (place / "out").glob("*.ds.index")) // 8
        return tokens - ends

    return run


def halve(documents: Path, folder: Path, rows: int | None = None) -> Path:
    """The same documents in two files, which is what two of datatrove's workers share."""
    table = pq.read_table(documents / "documents")
    folder.mkdir()
    half = -(-(rows or table.num_rows) // PROCESSES)
    for share in range(PROCESSES):
        part = table.slice(share * half, half).combine_chunks()
        pq.write_table(part, folder / f"{share}.parquet", compression="zstd")
    return folder


def main(megabytes: float, repeats: int) -> None:
    from launch.ray_launcher import EmbeddedRay
    from pipeline.execution.resources import Resources

    texts = list(installed_texts(int(megabytes * 1e6)))
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        documents, tokenizer = place / "documents", place / "tokenizer"
        write_documents(documents, texts)
        train_tokenizer(tokenizer, texts)
        runs = {
            "pack": packing(documents, tokenizer, place / "pack"),
            "encoder": encoding(documents, tokenizer),
        }
        if importlib.util.find_spec("datatrove"):
            halves = halve(documents, place / "halves")
            one = halve(documents, place / "one", rows=PROCESSES)
            runs["DocumentTokenizer"] = datatroves(halves, tokenizer, place / "datatrove")
            runs["DocumentTokenizer, a document each"] = datatroves(one, tokenizer, place / "start")
        else:
            print("datatrove is not installed: pip install datatrove[io,processing]")
        embedded = EmbeddedRay(Resources(PROCESSES))
        try:
            show(runs, contest(runs, repeats), size)
            peaks(runs)
        finally:
            embedded.close()


def contest(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Median seconds of each. All make the same tokens, or the race means nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first warms up
        made = {}
        for name, run in runs.items():
            begun = time.perf_counter()
            made[name] = run()
            if turn:
                seconds[name].append(time.perf_counter() - begun)
        assert made["pack"] == made["encoder"], made
        theirs = made.get("DocumentTokenizer", made["pack"])  # which reads `</s>` as a control id
        assert abs(theirs - made["pack"]) < 1e-5 * made["pack"], made
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def peaks(runs: dict[str, Callable[[], int]]) -> None:
    from footprint import peak

    for name in ("pack", "DocumentTokenizer"):
        if name in runs:
            most = peak(runs[name], newcomers=name != "pack")[1]
            print(f"{name:32s} {most:7.0f} MiB at most")


def show(runs: dict[str, Callable[[], int]], medians: dict[str, float], size: float) -> None:
    ours = medians["pack"]
    print(f"{size:.1f} MB of text, {PROCESSES} processes")
    for name in runs:
        if name.endswith("a document each"):
            print(f"{name:32s} {medians[name]:7.2f} s")
            continue
        rate, ratio = size / medians[name], medians[name] / ours
        print(f"{name:32s} {medians[name]:7.2f} s {rate:7.2f} MB/s   pack is {ratio:5.2f}x as fast")


if __name__ == "__main__":
    # The processes of the encoder import what they are to run by its module's name.
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    import bench_tokenize

    bench_tokenize.main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 50,
        int(sys.argv[2]) if len(sys.argv) > 2 else 5,
    )
