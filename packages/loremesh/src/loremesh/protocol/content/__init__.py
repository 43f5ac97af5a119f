"""Content: one kind, one file. Pure rules that every node checks alike."""
