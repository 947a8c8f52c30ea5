"""Writes the files that are made from code; with `--check` it writes nothing and fails when one of them is stale."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from docs import api_operations, commands, event_types, metric_names, order_states
from loop import config
from loop.server import error_codes

ROOT = Path(__file__).parents[1]

GENERATED: Mapping[str, Callable[[], str]] = {
    "config.example.toml": config.example_toml,
    "docs/reference/api.md": api_operations.markdown,
    "docs/reference/cli.md": commands.markdown,
    "docs/reference/configuration.md": config.reference_markdown,
    "docs/reference/errors.md": error_codes.reference_markdown,
    "docs/reference/events.md": event_types.markdown,
    "docs/reference/metrics.md": metric_names.markdown,
    "docs/reference/order-states.md": order_states.markdown,
}
"""Each generated file, from the root of the tree, and what returns its text."""


def stale_files() -> list[str]:
    """Return the files whose text is not what the code would write."""
    return [name for name, render in GENERATED.items() if _text_of(ROOT / name) != render()]


def write_files() -> None:
    """Write every generated file."""
    for name, render in GENERATED.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(), "utf-8")


def _text_of(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        write_files()
    elif stale := stale_files():
        sys.exit(f"Not what the code would write: {', '.join(stale)}. Run: python docs/generate.py")
