"""Operands of operators, kept from a run of a model in a file, to be given to any port again."""
