"""The lock file pins everything that pyproject.toml names, and nothing in it is of one machine."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def normalised(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named_packages() -> list[str]:
    project = PYPROJECT["project"]
    lists = [
        project["dependencies"],
        *project["optional-dependencies"].values(),
        *PYPROJECT["dependency-groups"].values(),
    ]
    names = {re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0] for each in lists for requirement in each}
    return sorted(normalised(name) for name in names)


def pins() -> set[str]:
    return {normalised(name) for name in re.findall(r"^([\w.-]+)==\S+", LOCK, re.MULTILINE)}


@pytest.mark.parametrize("package", named_packages())
def test_each_named_package_is_pinned(package: str) -> None:
    assert package in pins(), "run `just lock`"


def test_each_pin_has_a_hash() -> None:
    entries = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert {normalised(entry.split("==")[0]) for entry in entries} == pins()
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_no_place_of_one_machine_is_named() -> None:
    assert re.findall(r"^.*(?:://|file:|--index|--find-links| /).*$", LOCK, re.MULTILINE) == []
