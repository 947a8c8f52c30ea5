"""Draws the tables that decide about orders, attempts and disputes, as Markdown tables and as graphs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from loop.domain import attempts, disputes, orders
from loop.domain.attempts import LIVE_STATUSES, AttemptStatus, Moved
from loop.domain.disputes import DisputeStatus
from loop.domain.orders import Command, Fact, Ignored, Next, OrderStatus, Refused

LATE_MARK = " (late)"

HEAD = """\
# States of orders, payment attempts and disputes

The tables below decide every change of an order, of an attempt to pay it and of a dispute of its payment. This file is
written from them (`TABLE` in `loop.domain.orders`, `loop.domain.attempts` and `loop.domain.disputes`) by
`python docs/generate.py`.

A *command* is what a merchant, a customer or an operator asks for: it leads to a status or is refused. A *fact* is what
a processor says has happened: it leads to a status or is recorded as ignored, and is never refused. A fact is applied
to its attempt first; only what moves the attempt reaches the order.
"""

LATE = """\
*Late* is money that arrives after the order was given up: it is written down, told (`payment.late_success`) and pays
the order, or goes back if its merchant wants that. Money of an attempt for an order that another attempt has paid is
not the order's: it is written down, told and given back, and the order stays as it is. An attempt that failed may leave
its order `processing`: then the next processor has its turn.
"""

ATTEMPTS = """\
While an attempt is {live}, its order can have no other one.
Knowledge only grows: an outcome that claims less than is known already changes nothing. Only between its customer and
the bank a payment goes to and fro (`requires_action`, `pending`): there the latest answer counts, and of two that came
at once neither, but the next one.
"""

DISPUTES = """\
A dispute leaves the order's status alone: it shows as `amountDisputed`, the sum of what is {at_stake}, which is not
refunded. Each change of a dispute is told by the event that is named here.
"""


def markdown() -> str:
    """Return the text of docs/reference/order-states.md."""
    parts = [
        HEAD,
        "## Orders\n",
        "![Every status of an order, and what leads from one to another](order-states.svg)\n",
        "### Commands\n",
        _table("status", [*Command], [(status, [_command_cell(status, c) for c in Command]) for status in OrderStatus]),
        "A command that is refused is answered with `invalid_status` and these words:\n",
        _refusals(),
        "### Facts\n",
        LATE,
        _table("fact", [*OrderStatus], [(fact, [_fact_cell(status, fact) for status in OrderStatus]) for fact in Fact]),
        "## Payment attempts\n",
        ATTEMPTS.format(live=_listed(status for status in AttemptStatus if status in LIVE_STATUSES)),
        "![Every status of an attempt, and which may follow which](attempt-states.svg)\n",
        _table(
            "is \\ claimed",
            [*AttemptStatus],
            [(current, [_attempt_cell(current, claimed) for claimed in AttemptStatus]) for current in AttemptStatus],
        ),
        "## Disputes\n",
        DISPUTES.format(at_stake=_listed(status for status in DisputeStatus if status in disputes.AT_STAKE)),
        _table(
            "is \\ claimed",
            [*DisputeStatus],
            [
                (current or "not known", [_dispute_cell(current, claimed) for claimed in DisputeStatus])
                for current in (None, *DisputeStatus)
            ],
        ),
    ]
    return "\n".join(parts)


def _listed(words: Iterable[str]) -> str:
    *first, last = [f"`{word}`" for word in words]
    return f"{', '.join(first)} or {last}" if first else last


def _table(corner: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *([f"**{name}**", *cells] for name, cells in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _command_cell(status: OrderStatus, command: Command) -> str:
    cell = orders.decide(status, command)
    return f"→ {cell.status}" if isinstance(cell, Next) else "refused"


def _refusals() -> str:
    told: dict[tuple[str, Command], list[str]] = defaultdict(list)
    for command in Command:
        for status in OrderStatus:
            cell = orders.decide(status, command)
            if isinstance(cell, Refused):
                told[cell.message, command].append(status)
    return "".join(
        f"- {command} while {_listed(statuses)}: {message}\n" for (message, command), statuses in told.items()
    )


def _fact_cell(status: OrderStatus, fact: Fact) -> str:
    cell = orders.decide(status, fact)
    if isinstance(cell, Next):
        return f"→ {cell.status}{LATE_MARK if cell.is_late else ''}"
    return cell.reason if isinstance(cell, Ignored) else "refused"


def _order_edges() -> dict[tuple[str, str], list[str]]:
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for status in OrderStatus:
        for order_input, cell in orders.TABLE[status].items():
            if isinstance(cell, Next) and cell.status is not status:
                edges[status, cell.status].append(f"{order_input}{LATE_MARK if cell.is_late else ''}")
    return edges


def _attempt_edges() -> dict[tuple[str, str], list[str]]:
    return {(current, claimed): [] for (current, claimed), cell in attempts.TABLE.items() if isinstance(cell, Moved)}


def _attempt_cell(current: AttemptStatus, claimed: AttemptStatus) -> str:
    cell = attempts.TABLE[current, claimed]
    return f"→ {cell.status}" if isinstance(cell, Moved) else cell.reason


def _dispute_cell(current: DisputeStatus | None, claimed: DisputeStatus) -> str:
    cell = disputes.decide(current, claimed)
    return f"→ {claimed} (`{cell.event}`)" if isinstance(cell, disputes.Moved) else cell.reason


def _graph(edges: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """Return a directed graph in the language of Graphviz."""
    first = next(iter(edges))[0]
    ends = {end for _, end in edges}.difference(start for start, _ in edges)
    lines = [
        "digraph {",
        '  bgcolor="white"; rankdir="TB"; nodesep="0.45"; ranksep="0.75"; pad="0.2";',
        '  node [fontname="sans-serif", fontsize="13", margin="0.15,0.07"];',
        '  node [shape="box", style="rounded,filled", fillcolor="#eef2ff", color="#4f46e5"];',
        '  edge [color="#64748b", fontcolor="#334155", fontname="sans-serif", fontsize="10", arrowsize="0.7"];',
        '  "" [shape="circle", fillcolor="#0f172a", width="0.14", fixedsize="true"];',
        *(f'  "{end}" [peripheries="2"];' for end in sorted(ends)),
        f'  "" -> "{first}";',
    ]
    for (start, end), labels in edges.items():
        is_late = bool(labels) and all(label.endswith(LATE_MARK) for label in labels)
        looks = ', style="dashed"' if is_late else ""
        text = "\\n".join(labels)
        lines.append(f'  "{start}" -> "{end}" [label="{text}"{looks}];')
    return "\n".join([*lines, "}\n"])


def graphs() -> Mapping[str, str]:
    """Return the graphs that the page shows: name of the drawing -> its description in the language of Graphviz."""
    return {"order-states.svg": _graph(_order_edges()), "attempt-states.svg": _graph(_attempt_edges())}
