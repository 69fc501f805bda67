"""torchvision where its wheel does not load: peers import it, and use nothing of it here."""

from __future__ import annotations

import sys
import types


def stand_in() -> None:
    """Put an empty module in place of the part that fails beside torch's CPU build."""
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("none"))
