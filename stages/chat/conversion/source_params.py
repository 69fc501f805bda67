"""Parameters of the stages that read conversations and rankings: sources, formats and splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.errors import InputError, Problem, did_you_mean
from pipeline.stage import EXECUTION, Params
from stages.curation.left_out import LEFT_OUT_METRICS, UNREAD_METRICS
from stages.curation.param_checks import repeated_values
from stages.text.sources import fsspec_files

if TYPE_CHECKING:
    from stages.chat.conversion.prompt_split import PromptSplit
    from stages.chat.row_options import RowOptions

EVAL_SHARE = 0.05
RESERVED = ("place",)
"""Keys of `meta` that the stages set."""
ROW_METRICS = {
    "rows": "records of the sources",
    "read": "what the rows hold: kept, shortened and dropped together",
    "kept": "kept as it is",
    "shortened": "kept in another form",
    "shortened_*": "kept in another form, by reason",
    "dropped": "not kept",
    "kept_share": "share of what is read that is kept, shortened included",
    "repeated": "equal to an earlier one",
    "control_text": "with a text that spells a control token, kept or not",
    "broken": "rows and files that cannot be read",
    "train": "in the train split",
    "eval": "in the eval split",
    **LEFT_OUT_METRICS,
    **UNREAD_METRICS,
}
"""Metrics of both stages, in numbers of conversations or rankings."""


class RowSourceParams(Params):
    """Sources of rows, their format, and the split."""

    wanted: ClassVar[Literal["dialogues", "rankings"]]
    """Content of a row that the stage reads."""

    sources: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Files, folders or globs of json (lines, an array or one record), jsonl, ndjson, csv, tsv and
    parquet, all but parquet also compressed (.gz, .zst, .bz2, .xz); the same by any URL of fsspec
    (`s3://bucket/folder`, `https://host/*.jsonl.gz`); and `hf:NAME[@REVISION][?split=train]`, a
    Hugging Face dataset. The content determines the artifact, not its location."""
    eval_sources: Annotated[tuple[str, ...], EXECUTION] = ()
    """Sources whose rows all go to the eval split. Default: none."""
    format: str | None = None
    """Format of the rows, by name; see docs/conversations.md. Default: detected per file."""
    fields: dict[str, str] = Field(default={})
    """Field of the format -> its name in the files: `{prompt: question}`. Default: equal names."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = Field(default={})
    """Word for a role in the files -> role: `{bot: assistant}`. Default: the usual words."""
    repeated_roles: Literal["merge", "refuse"] = "merge"
    """Treatment of consecutive messages of one role: joined by a blank line, or the row is left
    out. Default: merge."""
    repeated: Literal["keep", "drop"] = "keep"
    """Treatment of a conversation or ranking that equals an earlier one in all texts, which is
    counted in any case: files repeat rows to give them weight. Default: keep."""
    meta_columns: tuple[str, ...] = ()
    """Fields to keep as metadata where present (`category`). Default: none."""
    eval_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the first prompts in the eval split, by the hash of the first user message and the
    seed, so that all conversations and rankings of a prompt, in all stages with this seed, are in
    one split. Default: 0.05; 0 with split_field or eval_sources."""
    split_field: str | None = None
    """Field that names a row's split: train or training; eval, evaluation, val, valid, validation,
    dev, test or heldout. What is in the train split and has a first prompt of the eval split is
    left out. Default: split by eval_share."""
    seed: int = 0
    """Seed of the split by hash. Default: the pipeline's."""
    max_rows: PositiveInt | None = None
    """Maximum number of rows to read, the first ones. Default: all."""
    max_broken: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of rows and files that cannot be read, which are counted and stored with
    those left out. Default: any number."""

    @property
    def all_sources(self) -> tuple[str, ...]:
        """The sources in order, those of the eval split last."""
        return (*self.sources, *self.eval_sources)

    @property
    def row_options(self) -> RowOptions:
        """The options that formats and checks of rows take."""
        from stages.chat.row_options import RowOptions

        return RowOptions(
            fields=self.fields,
            roles=self.roles,
            repeated_roles=self.repeated_roles,
            replies=self.all_or_once,
        )

    @property
    def all_or_once(self) -> Literal["all", "once"]:
        """Treatment of replies that several conversations of a tree share."""
        return "all"

    @property
    def prompt_split(self) -> PromptSplit:
        """The assignment of rows to splits."""
        from stages.chat.conversion.prompt_split import PromptSplit

        given, share = bool(self.split_field or self.eval_sources), self.eval_share
        if share is None:
            share = 0.0 if given else EVAL_SHARE
        return PromptSplit(share, self.seed, len(self.sources), given)

    def externals(self) -> dict[str, str]:
        """Return the digest of each source."""
        from stages.text.sources.file_formats import RECORD_FORMATS
        from stages.text.sources.source_listing import content_digest

        named = {f"sources.{at}": name for at, name in enumerate(self.sources)}
        named |= {f"eval_sources.{at}": name for at, name in enumerate(self.eval_sources)}
        return {key: content_digest(name, RECORD_FORMATS) for key, name in named.items()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Check sources, the format, and that one way to split is given."""
        if len(set(self.all_sources)) < len(self.all_sources):
            yield Problem("sources", "lists a source twice", "list each source once")
        for key, names in (("sources", self.sources), ("eval_sources", self.eval_sources)):
            if any(fsspec_files.contains_secret(name) for name in names):
                yield Problem(key, *fsspec_files.SECRET_IN_URL)
        yield from repeated_values(self, "meta_columns")
        for name in sorted(set(RESERVED) & set(self.meta_columns)):
            yield Problem("meta_columns", f"{name!r} is reserved", "remove it")
        if self.split_field and (self.eval_share or self.eval_sources):
            remedy = "remove eval_share and eval_sources"
            yield Problem("split_field", "excludes other ways to hold out rows", remedy)
        yield from self._format_problems()

    def _format_problems(self) -> Iterator[Problem]:
        """Yield a problem if the format or a field of it is unknown, or if its rows hold nothing
        that the stage reads."""
        from stages.chat.row_formats.format_registry import FORMATS, find_format

        try:
            found = find_format(self.format, self.wanted) if self.format else None
        except InputError as error:
            yield Problem("format", error.message, error.remedy)
            return
        known = {name for each in FORMATS.values() for name in (found or each).fields}
        for name in sorted(self.fields.keys() - known):
            message = f"{name!r} is not a field of {self.format or 'any format'}"
            yield Problem("fields", message, did_you_mean(name, known))
