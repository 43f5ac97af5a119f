"""Start the `loremesh-validator` program."""

from loremesh.cli.errors import run
from loremesh.cli.validator import app


def main() -> None:
    """Run it with the arguments of this process."""
    run(app, "loremesh-validator")


if __name__ == "__main__":
    main()
