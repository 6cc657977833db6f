"""Batch jobs: a file of requests in, a file of answers out, exactly once, whatever happens in between."""
