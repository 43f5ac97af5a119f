"""Start the `loremesh-executor` program."""

from loremesh.cli.errors import run
from loremesh.cli.executor import app


def main() -> None:
    """Run it with the arguments of this process."""
    run(app, "loremesh-executor")


if __name__ == "__main__":
    main()
