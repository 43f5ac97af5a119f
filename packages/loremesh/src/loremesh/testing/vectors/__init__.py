"""Vectors: what the rules answer, computed from the rules, one family per file."""
