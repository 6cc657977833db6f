"""A transformer as functions of a port, read from its program: no framework, no file, no tier."""
