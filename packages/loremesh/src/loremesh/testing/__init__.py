"""The test kit, shipped to users: fakes, builders and vectors. No binary imports it."""
