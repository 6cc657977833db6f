"""Measures a machine through a port, and keeps the measurements in a folder."""
