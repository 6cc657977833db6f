"""For the machine of mixed jobs: puts its parts, which lie beside it, and the emulator on the import path."""

import sys
from pathlib import Path

HERE = Path(__file__).parent

sys.path[:0] = [str(HERE), str(HERE.parents[1] / "kernels" / "emulator")]
