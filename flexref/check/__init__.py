"""Holds a port and an engine against the float64 reference and its computed bounds; needs no hypothesis."""
