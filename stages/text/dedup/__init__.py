"""Deduplication: phase 3 of `clean`.

duplicates          documents and hashes -> the survivor of each group of copies
hash_join           equal hashes -> components, in tasks over shards
minhash             signatures and bands of near duplicates
survivor_ranking    preferences -> the rank of each document
exact_substrings    removal of repeated lines, paragraphs and substrings
hash_index          hashes of kept documents, for a later `clean`
"""
