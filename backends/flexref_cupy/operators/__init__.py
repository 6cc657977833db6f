"""The operators of the port: layouts, which kernel takes what, limits; each knows the device, none another lane."""
