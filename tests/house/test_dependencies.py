"""The version is one, and what the packages ask for is what the lock holds."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import loremesh

PACKAGES = ["packages/loremesh", "bin/client", "bin/executor", "bin/validator"]
LOCKED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^ ;\\]+)", re.MULTILINE)


def project(checkout: Path, package: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((checkout / package / "pyproject.toml").read_text(encoding="utf-8"))
    return table["project"]  # type: ignore[no-any-return]  # TOML is untyped


def asked_for(checkout: Path) -> list[str]:
    """What the library depends on, and what its extras add; but for the engine of 34 MB that nothing here needs."""
    described = project(checkout, "packages/loremesh")
    extras = [asked for name, asked in described["optional-dependencies"].items() if name != "local"]
    return [*described["dependencies"], *chain.from_iterable(extras)]


def locked(checkout: Path) -> dict[str, str]:
    text = (checkout / "requirements.lock").read_text(encoding="utf-8")
    return {canonicalize_name(found["name"]): found["version"] for found in LOCKED.finditer(text)}


def required(checkout: Path, file: str) -> list[Requirement]:
    lines = (checkout / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_version_is_one(package: str, checkout: Path) -> None:
    described = project(checkout, package)
    assert described["version"] == loremesh.__version__
    assert [one for one in described["dependencies"] if one.startswith("loremesh")] == (
        [] if package == "packages/loremesh" else [f"loremesh=={loremesh.__version__}"]
    )


def test_what_the_library_depends_on_is_in_the_lock_at_a_version_it_accepts(checkout: Path) -> None:
    versions = locked(checkout)
    for line in asked_for(checkout):
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


def test_the_lock_is_made_of_what_the_library_and_its_tools_ask_for(checkout: Path) -> None:
    asked = {canonicalize_name(one.name) for one in required(checkout, "requirements.in")}
    library = {canonicalize_name(Requirement(one).name) for one in asked_for(checkout)}
    assert library <= asked
    assert asked <= set(locked(checkout))


def test_an_override_is_what_the_lock_holds(checkout: Path) -> None:
    for override in required(checkout, "requirements.overrides"):
        assert override.specifier.contains(locked(checkout)[canonicalize_name(override.name)])


def test_every_locked_package_has_a_hash(checkout: Path) -> None:
    text = (checkout / "requirements.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(locked(checkout))
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_a_binary_is_thin(package: str, checkout: Path) -> None:
    (start,) = (checkout / package).glob("*/__main__.py")
    assert len(start.read_text(encoding="utf-8").splitlines()) < 40
