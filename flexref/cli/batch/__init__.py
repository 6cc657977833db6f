"""`flexref batch` and its subcommands: each parses, calls the job, and prints."""
