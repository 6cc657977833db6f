"""Measures a machine through a port, and keeps what it measured."""
