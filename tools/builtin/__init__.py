"""The making of the built-in model, stage by stage; it knows nothing of how the engine runs that model."""
