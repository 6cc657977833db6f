"""The console entry point: interrupts are handled before anything large is imported; it knows nothing else."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the `flexref` command and exit with its code."""
    try:
        from flexref.cli.main import main as command  # noqa: PLC0415  an interrupt may come while it is imported
    except KeyboardInterrupt:
        sys.stderr.write("flexref: interrupted\n")
        sys.exit(INTERRUPTED)
    command()


if __name__ == "__main__":
    main()
