"""Two ports on one model, side by side: where they part first, and which of them is right."""
