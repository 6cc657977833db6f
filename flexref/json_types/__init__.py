"""What JSON values and objects may be, checked and described: types of values, dataclasses as objects."""
