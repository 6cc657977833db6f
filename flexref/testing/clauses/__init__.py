"""The clauses of the port contract, by theme; `flexref.testing.contract` says which of them a port must pass."""
