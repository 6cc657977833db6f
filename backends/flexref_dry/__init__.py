"""The port that computes nothing: it follows every call by shape and counts bytes, calls and FLOPs."""

from flexref_dry.backend import DryBackend

__all__ = ["DryBackend"]
