"""What must never be committed: this machine's folders, and where its packages come from."""

import re
from pathlib import Path

import pytest

# Each is put together here so that this file does not hold what it looks for.
FOLDERS = re.compile(r"(?<![\w.~}>/-])/(?:" + "|".join(["home", "root", "work", "Users"]) + r")/\w")
REGISTRIES = re.compile(
    "|".join(["pypi" + r"\.org", "python" + r"hosted\.org", "registry" + r"\.npmjs", "static" + r"\.crates\.io"])
)
INDEX_OPTIONS = re.compile(r"--(?:extra-|default-)?index" + r"-url\b|--find" + r"-links[ =]\S")


def offending(committed: tuple[Path, ...], pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in committed:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image names no folder
        found += [f"{path.name}:{number}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    return found


@pytest.mark.parametrize("pattern", [FOLDERS, REGISTRIES, INDEX_OPTIONS], ids=["folders", "registries", "options"])
def test_no_committed_file_tells_about_the_machine_it_was_made_on(
    pattern: re.Pattern[str], committed: tuple[Path, ...]
) -> None:
    assert not offending(committed, pattern)


def test_the_patterns_find_what_they_are_for() -> None:
    assert FOLDERS.search('path = "' + "/home" + '/ann/lore"')
    assert not FOLDERS.search("https://example.org" + "/home" + "/ann")
    assert not FOLDERS.search("see docs" + "/work" + "/shares.md")
    assert REGISTRIES.search("https://" + "pypi" + ".org/simple")
    assert INDEX_OPTIONS.search("--index" + "-url https://example.org")


def test_nothing_that_is_made_is_committed(committed: tuple[Path, ...], checkout: Path) -> None:
    names = [path.relative_to(checkout).as_posix() for path in committed]
    assert len(names) > 20
    assert not [name for name in names if re.search(r"__pycache__|\.py[co]$|\.key$|\.db$|\.egg-info|^\.venv", name)]
