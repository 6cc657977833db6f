"""Commands for those who write a port."""
