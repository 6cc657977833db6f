"""For the oracle's tests: puts `oracle_kit`, their common code, on the import path; it knows nothing of either side."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
