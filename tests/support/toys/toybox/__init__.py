"""A package of somebody else that offers stages, as an installed one would."""
