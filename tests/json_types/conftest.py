"""For the tests of JSON types: puts `json_schema_kit`, which validates by a schema, on the import path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
