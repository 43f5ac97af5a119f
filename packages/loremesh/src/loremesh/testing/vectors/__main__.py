"""Write every vector file anew: `python -m loremesh.testing.vectors OUT_DIR`."""

import sys
from pathlib import Path

from loremesh.testing.vectors.files import vector_files


def main(arguments: list[str]) -> int:
    """Write the files; give the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m loremesh.testing.vectors OUT_DIR\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in vector_files().items():
        (folder / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
