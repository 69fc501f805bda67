"""A package outside the tree that adds one thing of each sort, each by one file.

parallel_decoder.py   a model family
signum.py             an optimizer
halves.py             an objective
quantize.py           a kind of artifact, with its stage
"""
