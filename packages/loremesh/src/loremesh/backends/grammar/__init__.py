"""The grammar of the builtin backend: vocabulary, sentences, and how texts of others are read and woven in."""
