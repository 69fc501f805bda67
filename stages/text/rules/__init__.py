"""Rules that a document must pass. A rule is a measure of the text and the range it must lie in;
rule sets are named by where they come from, and by variant where implementations differ.

catalogue    every set with its rules, their ranges and sources: plain data, nothing heavy
view         a text with what several rules need of it, each computed once
ngrams       repeated n-grams, compiled
gopher, c4, fineweb, code, chinese, shape    the measures
scoring      the sets of a pipeline file -> one figure a rule
"""
