"""What a batch job shows of itself on the command line: options, a live display, plain lines."""
