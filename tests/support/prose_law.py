"""The project's language, as a check: docstring form and banned words, per module or document."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

BANNED = {
    r"(?i:told|mend|mends|mended|mending)": "report, repair",
    r"(?i:wish|wishes|wished)": "request, prefer",
    r"(?i:nobody|somebody|whoever|everybody|someone|anybody|everyone)": "the user, the program",
    r"(?i:learnt|begun|beside|amiss|thereof|whence|whilst|aught)": "learned, next to, wrong",
    r"for ever": "forever",
    r"of which|for it is|though it": "rewrite the clause",
    r"(?i:guilty|jury|census|exhibits?|museum|theatre)|[Vv]erdicts|Verdict": "no metaphors",
    r"(?i:workshops?|crowded|never made|made again)": "package, unschedulable, produced",
    r"(?i:judged|judges|judging)": "evaluated, scored, annotated",
    r"(?i:says|tells|asks|wants|hopes|thinks)": "programs do not speak: states, shows, returns",
    r"figures|[Ff]igure(?! ?\d)": "metric",
    r"put aside|set aside|go on from|goes on where|left out:": "reserve, resume from, Default:",
    r"is none|are no classes|is no multiple|are none|is no number": "is not a ...",
    r"to be had|as it were": "rewrite",
}
"""Pattern of banned words -> what to write instead."""

UNITS = (
    "tokens?|seconds?|bytes?|nats|bits|steps?|FLOPs?|rows?|samples?|documents?|pairs?|images?|"
    "characters?|megabytes|MiB|GiB|points?|updates?|batches|words?|ranks?|files?|minutes?|hours?|"
    "weights?|parameters?|numbers?|times|metrics?|losses|loss|lines?|entries"
)
DIVISORS = (
    "steps?|tokens?|second|minute|hour|day|batch|rank|device|document|row|sample|pair|image|node|"
    "character|word|shard|file|weight|parameter|process|worker|update|epoch|iteration|prompt|expert|"
    "layer|head|block|position|GPU|stage|run|attempt|record|page|sequence|micro-batch|label|class"
)
PER = re.compile(rf"\b(?:{UNITS}) an? (?:{DIVISORS})\b")
"""'tokens a step' for 'tokens per step'."""

_BANNED = [(re.compile(rf"\b(?:{words})\b"), use) for words, use in BANNED.items()]
_QUESTION = re.compile(r"(What|Whether|Which|How|Who|Whose|Where|When|Why)\b")
_NOT_VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        what whether which how who whom whose where when why a an the all as if one two
        three this that these those it its they their them each every any some no not none
        in on at of for from by with without to into than then there here only also both
        either neither so such same other more most less least many few several his her
        our your my we you i is are was were be been has have had does did will would can
        could may might must shall should never always once again yes number true false
        after before while until since because although between among under over up down
        out off about like unlike per via
        """,
    )
)
_VERBS_IN_S = {"process", "pass", "express", "compress", "access", "address", "press", "discuss",
               "guess", "cross", "miss", "toss", "dismiss", "focus", "bias", "canvass", "suppress",
               "progress", "assess", "decompress", "bypass", "reprocess", "preprocess"}  # fmt: skip
_VERBS_IN_ED = {"embed", "feed", "read", "seed", "shred", "need", "speed", "heed", "reseed",
                "exceed", "proceed", "succeed", "bleed", "weed", "shed", "wed"}  # fmt: skip
_VERBS_IN_ING = {"bring", "string", "ring", "ping", "swing", "wing"}


def docstring_problem(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return what is wrong with the form of a function's docstring, or an empty string."""
    text = ast.get_docstring(node)
    if not text or node.name.startswith("__") or _is_property(node):
        return ""
    first = re.match(r"[`\w'-]+", text)
    word = first.group(0).lower() if first else ""
    odd = (
        not word
        or word in _NOT_VERBS
        or word.startswith("`")
        or (word.endswith("s") and word not in _VERBS_IN_S)
        or (word.endswith("ed") and word not in _VERBS_IN_ED)
        or (word.endswith("ing") and word not in _VERBS_IN_ING)
        or (word.endswith(("ly", "tion", "ness", "ment", "er"))
        and word not in {"apply", "reply", "multiply", "supply", "rely", "implement", "register",
                         "filter", "enter", "render", "gather", "scatter", "order", "number",
                         "deliver", "answer", "cover", "recover", "consider", "discover", "alter",
                         "increment", "decrement", "augment", "document", "mention", "partition",
                         "position", "comment", "cluster", "buffer", "lower", "trigger", "infer",
                         "transfer", "refer", "offer", "defer", "monitor", "enumerate", "condition",
                         "segment", "experiment", "complement", "supplement", "annotate", "prefer",
                         "remember", "administer", "layer", "center", "solder", "computer"})
    )  # fmt: skip
    return (
        f"{node.name}: docstring begins with {word!r}, not with an imperative verb" if odd else ""
    )


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    names = {ast.unparse(d).rsplit(".", 1)[-1].split("(")[0] for d in node.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def word_problems(text: str) -> Iterator[str]:
    """Yield each banned word of `text`, and what to write instead."""
    for pattern, use in _BANNED:
        for found in pattern.findall(text):
            yield f"{found!r} (write: {use})"
    for found in PER.findall(text):
        yield f"{found!r} (write: per)"


def module_problems(path: Path) -> list[str]:
    """Return the problems of a Python module: docstrings, names, comments and messages."""
    source = path.read_text()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [f"{path}:{node.lineno}: {p}" for p in [docstring_problem(node)] if p]
        elif isinstance(node, ast.Expr) and _QUESTION.match(_text(node)):
            found.append(f"{path}:{node.lineno}: documentation begins with a question")
    for number, line in enumerate(source.splitlines(), 1):
        plain = line.replace("_", " ")
        found += [f"{path}:{number}: {p}" for p in word_problems(plain)]
    return found


def _text(node: ast.Expr) -> str:
    return str(node.value.value) if isinstance(node.value, ast.Constant) else ""


def markdown_problems(path: Path) -> list[str]:
    """Return the banned words of a Markdown file, with their lines."""
    lines = enumerate(path.read_text().splitlines(), 1)
    return [f"{path}:{number}: {p}" for number, line in lines for p in word_problems(line)]
