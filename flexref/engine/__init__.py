"""A session on a port, the jobs that run on it, and their account; nothing is imported from here."""
