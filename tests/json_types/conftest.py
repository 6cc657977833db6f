"""For the tests of JSON types: puts `json_schema_kit` and `json_tree_kit`, their common code, on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
