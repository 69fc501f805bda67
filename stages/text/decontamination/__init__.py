"""Removal of evaluation data from a corpus.

ngram_index              evaluation sets -> their items and n-grams
ngram_search             a part of the documents -> every place that contains an n-gram of an item
contamination_detector   the share of each item that a document contains
decontamination_stats    counts by outcome of the documents, and by evaluation set
decontamination_writer   the documents in order -> documents/, dropped/, matches/, stats.json
"""
