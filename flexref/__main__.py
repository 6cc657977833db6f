"""`python -m flexref` is the `flexref` command; it knows nothing else."""

from flexref.cli.main import main

if __name__ == "__main__":
    main()
