"""What a model is, as data: sizes, tensors, stages, configuration; it knows no array and no file."""
