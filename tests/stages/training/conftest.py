"""Makes the cases of the training tests importable, here and in the ranks that are started."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
