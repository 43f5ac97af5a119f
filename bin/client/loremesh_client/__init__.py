"""The loremesh client program."""
