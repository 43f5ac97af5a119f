"""The loremesh validator program."""
