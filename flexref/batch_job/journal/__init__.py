"""What makes a batch job durable: its journal, and the files that are written in order from it."""
