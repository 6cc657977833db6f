"""The parts of the machine of mixed jobs; it holds no test."""
