"""Rows of a run computed again in float32, every token being the row's own, and how far a port's logits may be off."""
