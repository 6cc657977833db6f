"""The parts of tools/mutate_operators; run that."""
