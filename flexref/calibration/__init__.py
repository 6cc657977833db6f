"""Conversions that look at a sample of text."""
