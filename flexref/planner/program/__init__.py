"""The pure linear program and its search: numbers in, shares out."""
