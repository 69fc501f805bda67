"""Text sources: listing, splitting, and reading of every format.

source_file      a file of a source, or a part of one
file_io          opening, hashing, and errors of files here and behind URLs
source_listing   a source's name -> its files in order, their digest, and shards of them
file_splitting   a large file -> parts
readers          a file -> raw documents, by suffix
fsspec_files, hf_datasets, html_extraction    URLs, Hugging Face datasets, web pages
"""
