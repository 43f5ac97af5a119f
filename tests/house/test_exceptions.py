"""An exception to a rule of the house says why it is one."""

import re
from pathlib import Path

# The words are put together here so that this file does not look like an exception itself.
SILENCERS = {
    "no" + "qa": re.compile(r"#\s*no" + r"qa(?!: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* - \S)"),
    "type: " + "ignore": re.compile(r"#\s*type:\s*ig" + r"nore(?!\[[a-z, -]+\]  # \S)"),
    "pragma": re.compile(r"#\s*prag" + r"ma:(?!.* - \S)"),
}
WORDLESS = re.compile(r"^\s*\"[A-Z]+[0-9]*\",\s*$")


def test_every_silenced_line_has_its_reason(committed: tuple[Path, ...], checkout: Path) -> None:
    wordless = [
        f"{path.relative_to(checkout)}:{number}"
        for path in committed
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if any(pattern.search(line) for pattern in SILENCERS.values())
    ]
    assert not wordless, "say why, as in `# no" + "qa: X123 - reason` or `# type: ig" + "nore[code]  # reason`"


def test_every_rule_that_is_switched_off_has_its_reason(checkout: Path) -> None:
    text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    section = text[text.index("\nignore = [") : text.index("[tool.mypy]")]
    assert not [line for line in section.splitlines() if WORDLESS.match(line)]
    assert section.count("# ") > 10


def test_the_patterns_tell_a_reason_from_none() -> None:
    noqa, ignore = SILENCERS["no" + "qa"], SILENCERS["type: " + "ignore"]
    assert noqa.search("x = 1  # no" + "qa: S101")
    assert noqa.search("x = 1  # no" + "qa")
    assert not noqa.search("x = 1  # no" + "qa: S101, PLR2004 - the curve's")
    assert ignore.search("x = 1  # type: ig" + "nore[misc]")
    assert ignore.search("x = 1  # type: ig" + "nore  # because")
    assert not ignore.search("x = 1  # type: ig" + "nore[misc]  # untyped upstream")
