"""A hostile run: commands that are given damaged files, wrong calls, signals, full disks and limits, and are judged."""
