"""What answers a prompt. Importing the package loads no backend: whoever configures one imports its module."""
