"""The environment of an artifact."""

from __future__ import annotations

import json

from pipeline.storage.provenance import environment


def test_the_environment_lists_what_is_installed() -> None:
    known = environment()
    assert known["python"].startswith("3.")
    assert {"headwater", "numpy"} <= known["packages"].keys()
    assert json.dumps(known)
