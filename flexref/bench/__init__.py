"""Benchmarks: what one is asked to do, its runs, and the floors beside its figures."""
