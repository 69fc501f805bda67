"""The engine: a typed DAG of stages over an artifact store, executed on Ray.

It contains no machine learning and can run any DAG.
"""
