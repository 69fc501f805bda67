"""Text: the phases of `clean`, and what they are built from.

annotate, filter_decisions, dedup/, document_writer    the phases, in order
cleaning_stats, filter_report, read_limits             counts, report, limits on reading
sources/           listing and reading of files, URLs and datasets
rules/, words/     rules and edits; words as arrays
decontamination/   removal of evaluation items
python_docs/       questions and preferences from Python's own documentation
"""
