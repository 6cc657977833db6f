"""Where all parts meet: a weight file, a port, budgets and prompts in, tokens and their account out."""

from flexref.engine.engine import Engine
from flexref.engine.loading import load

__all__ = ["Engine", "load"]
