"""A batch job on many workers: who has which lines, and Dask, which reaches the workers; it knows no output."""
