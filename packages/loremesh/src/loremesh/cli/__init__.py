"""The command line: one command, one file. The only door to typer and rich.

`--help` must come at once, so a command imports what it works with when it runs.
"""
