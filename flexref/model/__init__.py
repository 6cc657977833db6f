"""The OPT transformer as functions of a port: no framework, no file, no tier."""
