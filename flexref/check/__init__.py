"""Compares a port, and an engine on it, with a float64 reference, within computed bounds; it needs no hypothesis."""
