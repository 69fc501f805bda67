"""The engine: a typed DAG of stages over an artifact store, carried out on Ray.

It knows nothing of machine learning and could run any DAG.
"""
