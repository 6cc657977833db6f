"""For the tests of machines: puts `json_tree_kit`, which the tests of JSON types share, on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "json_types"))
