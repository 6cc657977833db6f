"""JSON Schemas of what commands read and print, put together from the types of the values in them."""
