"""The zig-zag block schedule as data: what happens in which order, and what must have happened before what."""
