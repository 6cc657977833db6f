"""The same block on a machine's clock: predictions, and how far they were off."""
