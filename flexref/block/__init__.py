"""One block of rows on its way through a model: its memory, its passes, its moves and its computation."""
