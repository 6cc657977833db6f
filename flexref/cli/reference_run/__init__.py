"""The commands on reference runs: one writes them, one compares another engine with them."""

DTYPES = ("float32", "float16", "bfloat16")
"""Types of results whose bounds a reference has; those of `check.logits`, which is not imported for a help text."""
