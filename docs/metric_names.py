"""Metric names: the page that lists every figure that Loop keeps of itself."""

from loop.metrics import DECLARED


def markdown() -> str:
    """Return the page."""
    lines = [
        "# Metrics",
        "",
        "<!-- Made by docs/generate.py. -->",
        "",
        "What each process answers at `/metrics` and sends to an OpenTelemetry collector. Who may read it is in",
        "the [guide to observability](../guides/observability.md). `mode` is `test` or `live`, `processor` its name.",
        "Times are in seconds. A histogram has `_bucket`, `_sum` and `_count`, as Prometheus has it. Beside these,",
        "`/metrics` has the process's own figures (`process_…`).",
        "",
        "| Name | Kind | Labels | Meaning |",
        "|---|---|---|---|",
    ]
    for each in DECLARED:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        lines.append(f"| `{each.name}` | {each.kind} | {labels} | {each.about} |")
    return "\n".join([*lines, ""])
