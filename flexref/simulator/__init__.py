"""Predicts what a job takes by running its block on a simulated clock, and says how far predictions were off."""
