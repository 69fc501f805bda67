"""The code of a stage: the files that it imports, their hash, and their commit.

Files are read, not imported: `headwater plan` compares the code of stages whose libraries take
seconds to import. Followed are the imports, also late ones, of modules of the stage's project and
of Headwater; quoted names of such modules, by which registries load what is built in; and plugins,
where a stage loads them. Libraries are not followed: their versions are in the manifest.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from pipeline.plugins import load_plugins
from pipeline.stage import Stage

_INSTALLED = {"site-packages", "dist-packages"}
_SHIPPED = "_ray_pkg_"  # begins the name of the folder into which a Ray head unpacks a job's code
# A search, because parsing the files of one training stage takes a third of a second.
_IMPORT = re.compile(
    r"^[ \t]*from[ \t]+(?P<base>\.*[\w.]*)[ \t]+import[ \t]*(?P<names>\([^)]*\)|(?:\\\n|[^\n])*)"
    r"|^[ \t]*import[ \t]+(?P<modules>[^\n]*)"
    r"|[\"'](?P<quoted>[A-Za-z_]\w*(?:\.\w+)+)(?::\w+)?[\"']",
    re.MULTILINE,
)


def source_hash(stage: Stage) -> str:
    """Return the sha256 of the files of a stage and their names; empty if it has no file."""
    files = source_files(stage.run.__module__)
    hashes = [f"{name} {_sha256(path.read_bytes())}" for name, path in sorted(files.items())]
    return _sha256("\n".join(hashes).encode()) if files else ""


def source_files(module: str) -> dict[str, Path]:
    """Return the files of an imported module and of all that it imports of its project, by name."""
    plugins, files = load_plugins(), dict[str, Path]()
    starts = (module, "pipeline.stage", *plugins)
    roots = tuple(dict.fromkeys(root for start in starts if (root := _root(start))))
    packages = frozenset(start.partition(".")[0] for start in (*starts, "stages"))
    waiting, seen = [module], {""}
    while waiting:
        name = waiting.pop()
        parent = files.get(name.rpartition(".")[0])
        if name in seen or (parent and parent.stem != "__init__"):  # a class or a function
            continue
        seen.add(name)
        path = _find(name, roots, packages)
        if path and path.is_file():
            files[name] = path
            text = path.read_bytes().decode(errors="ignore")
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            waiting += [*_imported(text, package)[::-1], name.rpartition(".")[0]]
            if "load_plugins()" in text and not name.startswith("pipeline."):
                waiting += plugins
    return files


def _root(module: str) -> Path | None:
    """Return the folder that holds the top-level package of an imported module."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).parents[module.count(".") + file.endswith("__init__.py")] if file else None


@cache
def _find(name: str, roots: tuple[Path, ...], packages: frozenset[str]) -> Path | None:
    """Return the file of a module below one of the roots. Of installed packages only those are
    found that have a stage or a plugin."""
    known, base = name.partition(".")[0] in packages, name.replace(".", "/")
    for root in roots:
        if known or not _INSTALLED & set(root.parts):
            for path in (f"{root}/{base}/__init__.py", f"{root}/{base}.py"):
                if os.path.isfile(path):  # noqa: PTH113  Path takes twice the time
                    return Path(path)
    return None


@cache
def _imported(text: str, package: str) -> list[str]:
    """Return the names in a source text that may be modules."""
    found = []
    for match in _IMPORT.finditer(text):
        if match["base"] is not None:
            with suppress(ImportError):  # prose that reads like an import from further up
                base = resolve_name(match["base"], package)
                found += [base, *(f"{base}.{name}" for name in re.findall(r"\w+", match["names"]))]
        else:
            found += re.findall(r"\w+(?:\.\w+)*", match["modules"] or match["quoted"])
    return found


def code_version(stage: Stage) -> dict[str, Any]:
    """Return {commit, dirty} of the checkout that holds a stage.

    Outside of a checkout, the code of a job has the commit HEADWATER_JOB_COMMIT, and Headwater's
    own stages have HEADWATER_COMMIT: a commit, followed by `+dirty` if files had changed.
    """
    module = stage.run.__module__
    file = Path(getattr(sys.modules.get(module), "__file__", None) or os.devnull)
    ignored = _git(file.parent, "check-ignore", "--quiet", file.name) is not None
    if not ignored and (commit := _git(file.parent, "rev-parse", "HEAD")):
        changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
        tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return {"commit": commit, "dirty": bool(changed) or not tracked}
    shipped = any(part.startswith(_SHIPPED) for part in file.parts)
    variable = "HEADWATER_JOB_COMMIT" if shipped else "HEADWATER_COMMIT"
    known = os.environ.get(variable, "") if shipped or module.startswith("stages.") else ""
    return {"commit": known.removesuffix("+dirty") or None, "dirty": known.endswith("+dirty")}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of git in a folder; None without git or a checkout."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
