"""The rooms import downwards only: import-linter on the real tree, and on copies with one wrong import each."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_TIMEOUT_S = 60


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter as `.ci/run` and a developer do, on the package in `root`."""
    command = str(Path(sys.executable).with_name("lint-imports"))
    return subprocess.run(
        [command, "--no-cache", "--no-logo"],
        cwd=root,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=LINT_TIMEOUT_S,
        check=False,
    )


def copy_of_tree(root: Path) -> Path:
    """Copy what import-linter reads into `root`."""
    shutil.copytree(ROOT / "loop", root / "loop", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def test_tree_keeps_every_contract() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("domain/errors.py", "import loop.server", "The rooms import downwards only"),
        ("workers/__init__.py", "import loop.server", "The rooms import downwards only"),
        ("misplaced.py", '"""In no room."""', "The rooms import downwards only"),
        ("domain/errors.py", "import asyncio", "The domain is pure"),
        ("server/__init__.py", "import stripe", "Only the Stripe adapter reaches the Stripe SDK"),
        ("processors/sandbox.py", "import loop.processors.stripe", "Processors do not import each other"),
    ],
)
def test_wrong_import_breaks_its_contract(tmp_path: Path, module: str, line: str, contract: str) -> None:
    root = copy_of_tree(tmp_path)
    with (root / "loop" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(root)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout
