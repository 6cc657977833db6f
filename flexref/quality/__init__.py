"""How good a model is: perplexity, multiple choice, and two models compared."""
