"""The only door to the disk: the data directory, its lock, the database and the key file."""
