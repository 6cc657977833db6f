"""The folder of the built-in model's weight file, a package so that it is shipped; it holds no code."""
