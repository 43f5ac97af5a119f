"""Start the `loremesh` program."""

from loremesh.cli.errors import run
from loremesh.cli.main import app


def main() -> None:
    """Run it with the arguments of this process."""
    run(app, "loremesh")


if __name__ == "__main__":
    main()
