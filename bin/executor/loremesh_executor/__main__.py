"""Start the `loremesh-executor` program."""

from loremesh.cli.stopping import leave_at_signals


def main() -> None:
    """Run it with the arguments of this process."""
    leave_at_signals()
    # After that, because these take long enough for a signal to come in between.
    from loremesh.cli.errors import run  # noqa: PLC0415 - as said
    from loremesh.cli.executor import app  # noqa: PLC0415 - as said

    run(app, "loremesh-executor")


if __name__ == "__main__":
    main()
