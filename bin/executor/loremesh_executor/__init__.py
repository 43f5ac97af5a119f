"""The loremesh executor program."""
