"""Hugging Face folders: configuration and tensors, read without running anything."""
