"""Writes the files that are made from code; with `--check` it writes nothing and fails when one of them is stale."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
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

DRAWINGS = ROOT / "docs" / "reference"


def stale_files() -> list[str]:
    """Return the files whose text is not what the code would write."""
    texts = [name for name, render in GENERATED.items() if _text_of(ROOT / name) != render()]
    return texts + [f"docs/reference/{name}" for name in _stale_drawings()]


def write_files() -> None:
    """Write every generated file; drawings only where their graph has changed, since that needs Graphviz."""
    for name, render in GENERATED.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(), "utf-8")
    for name, graph in _stale_drawings().items():
        (DRAWINGS / name).write_text(f"<!-- {_mark_of(graph)} -->\n{_drawn(graph)}", "utf-8")


def _stale_drawings() -> Mapping[str, str]:
    """Return the graphs whose drawing is of another one; not of another Graphviz, which draws anew in each version."""
    graphs = order_states.graphs()
    return {name: graph for name, graph in graphs.items() if _mark_of(graph) not in (_text_of(DRAWINGS / name) or "")}


def _mark_of(graph: str) -> str:
    return f"drawn of {sha256(graph.encode()).hexdigest()}"


def _drawn(graph: str) -> str:
    try:
        done = subprocess.run(["dot", "-Tsvg"], input=graph, text=True, capture_output=True, check=True)  # noqa: S607
    except FileNotFoundError:
        sys.exit("The graphs of docs/reference have changed, and drawing them needs Graphviz: apt install graphviz")
    return re.sub(r"(?s)^.*?(?=<svg)", "", done.stdout)


def _text_of(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        write_files()
    elif stale := stale_files():
        sys.exit(f"Not what the code would write: {', '.join(stale)}. Run: python docs/generate.py")
