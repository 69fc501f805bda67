"""Rules that a document must pass. A rule is a measure of the text and a limit on it; rule sets are
named by their origin, and by a variant where implementations differ.

catalogue          every set with its rules, their limits and sources: plain data, nothing heavy
rule_params        rules and limits in a pipeline file
document_view      a text with what several rules need of it, each part computed once
repeated_ngrams    repeated n-grams, compiled
gopher, c4, code, chinese, language, word_list    the measures
rule_scorer        the sets of a pipeline file -> one score per rule
"""
