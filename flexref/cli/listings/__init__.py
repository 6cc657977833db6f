"""Commands that list what is known and installed; they run no model."""
