"""What configs/clip.yaml learns from drawings, seen in a style that training never saw.

    python tests/benchmarks/claim_clip.py FOLDER [STORE]

FOLDER holds WebDataset tars of images with captions, `train-*.tar` and `heldout_style-*.tar`, whose
metadata has a `category` and a `label`. Fails where fewer than 0.35 of the held-out images find
their caption among the first five of all (image-to-text R@5), where the ensemble of probabilities
names fewer than half of their categories, or where an ensemble is no better than a single prompt,
the category's name. Its prompts are the labels of the training images of a category.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HEADWATER = Path(sys.executable).parent / "headwater"
TEMPLATES = ["{}", "an emoji of {}", "a drawing of {}", "a small picture of {}"]
R5, ZERO_SHOT = 0.35, 0.50


def prepare(folder: Path, work: Path) -> list[str]:
    """Captions for the tokenizer, words of each category, and the overrides that name them."""
    lines, words = [], dict[str, dict[str, None]]()
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    meta = json.load(file)
                    lines.append(json.dumps({"text": "\n".join(meta["captions"])}) + "\n")
                    own = words.setdefault(meta["category"], {meta["category"].lower(): None})
                    own[meta["label"]] = None
    (work / "captions.jsonl").write_text("".join(lines))
    classes = [{"name": name, "words": list(own)} for name, own in sorted(words.items())]
    (work / "classes.json").write_text(json.dumps({"templates": TEMPLATES, "classes": classes}))
    return [
        f'pairs.sources=["{folder}/train-*.tar"]',
        f'pairs.eval_sources=["{folder}/heldout_style-*.tar"]',
        f'clean.sources=["{work}/captions.jsonl"]',
        "evaluation.label_field=category",
        f"evaluation.classes={work}/classes.json",
    ]


def run(store: Path, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Figures and seconds of each stage."""
    command = [str(HEADWATER), "run", "configs/clip.yaml", "--store", str(store), *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    asked = [str(HEADWATER), "status", "latest", "--store", str(store), "--json"]
    said = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {stage["name"]: stage for stage in json.loads(said)["stages"]}


def main(folder: Path, store: Path) -> int:
    with tempfile.TemporaryDirectory() as work:
        overrides = prepare(folder, Path(work))
        stages = run(store, overrides)
        likely = stages["evaluation"]["metrics"]
        near = run(store, [*overrides, "evaluation.prompt_ensemble=embeddings"])["evaluation"][
            "metrics"
        ]
    print(f"\ntrained for {stages['clip']['seconds'] / 60:.1f} minutes")
    for name in ("image_to_text_r1", "image_to_text_r5", "image_to_text_r10", "linear_probe"):
        print(f"{name:34s} {likely[name]:.3f}")
    for name, value in (
        ("zero-shot, one prompt", likely["zero_shot_single"]),
        ("zero-shot, mean of embeddings", near["zero_shot"]),
        ("zero-shot, mean of probabilities", likely["zero_shot"]),
    ):
        print(f"{name:34s} {value:.3f}")
    found = likely["image_to_text_r5"] >= R5 and likely["zero_shot"] >= ZERO_SHOT
    helps = min(near["zero_shot"], likely["zero_shot"]) > likely["zero_shot_single"]
    return 0 if found and helps else 1


if __name__ == "__main__":
    given = [Path(argument).resolve() for argument in sys.argv[1:]]
    sys.exit(main(given[0], given[1] if len(given) > 1 else Path(tempfile.mkdtemp())))
