"""The commands on reference runs: one writes them, one compares another engine with them."""
