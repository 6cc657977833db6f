"""For the tests of the CuPy port's kernels: puts the emulated device on the import path; it knows no kernel."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "emulator"))
