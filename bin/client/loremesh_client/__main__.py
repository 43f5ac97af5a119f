"""Start the `loremesh` program."""

from loremesh.cli.stopping import leave_at_interrupt


def main() -> None:
    """Run it with the arguments of this process."""
    leave_at_interrupt()
    # After that, because these take long enough for Ctrl-C to come in between.
    from loremesh.cli.errors import run  # noqa: PLC0415 - as said
    from loremesh.cli.main import app  # noqa: PLC0415 - as said

    run(app, "loremesh")


if __name__ == "__main__":
    main()
