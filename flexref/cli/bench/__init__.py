"""`flexref bench`: jobs timed on this machine, and benchmarks compared."""
