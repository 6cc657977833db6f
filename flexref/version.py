"""The version of the package, for `flexref --version`, reports and pyproject.toml; it imports nothing."""

__version__ = "0.1.0"
