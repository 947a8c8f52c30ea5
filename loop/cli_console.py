"""What commands work with: the flags before them, one piece of work over an open database, and tables to print."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from loop.domain.errors import LoopError, not_found

if TYPE_CHECKING:
    import pydantic

    from loop.config import Settings
    from loop.domain.audit import Actor
    from loop.domain.orders import Order
    from loop.storage.merchants import Merchant
    from loop.workflows.context import Context

T = TypeVar("T")
M = TypeVar("M", bound="pydantic.BaseModel")
_NOTHING: Mapping[str, str] = {}

PIPE_WIDTH = 240
"""Columns of a table that is not printed on a terminal."""

LIST_LIMIT = 1000
"""The most that one list shows."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MerchantArgument = Annotated[str, typer.Argument(help="The merchant's id or e-mail address.", metavar="MERCHANT")]

Limit = Annotated[int, typer.Option(min=1, max=LIST_LIMIT, help="At most so many.")]

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
Since = Annotated[datetime | None, typer.Option("--from", formats=_TIMES, help="Made then or later, in UTC.")]
Until = Annotated[datetime | None, typer.Option("--to", formats=_TIMES, help="Made before that, in UTC.")]

flags: dict[str, object] = {}
"""What was given before the command."""


SET_UP, SELL, TELL, LOOK_AFTER = "Set up and run", "Merchants and payments", "Webhooks", "Look after it"
PANELS = (SET_UP, SELL, TELL, LOOK_AFTER)
"""The parts of `loop --help`, in their order."""


class Panels(TyperGroup):
    """Commands whose help is in parts; each command names its part as its `rich_help_panel`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002 - Typer's own, and private
        """Write each part under its heading."""
        width = max(map(len, self.commands))
        for heading in PANELS:
            inside = [each for each in self.commands.values() if getattr(each, "rich_help_panel", None) == heading]
            with formatter.section(heading):
                rows = [(str(each.name).ljust(width), each.get_short_help_str(formatter.width)) for each in inside]
                formatter.write_dl(rows)


def load_settings(*, makes: bool = True, **more: object) -> "Settings":
    """Return the settings, these flags among them; None counts as not given. A command that only looks makes nothing.

    What is made is a data directory and the secrets in it.
    """
    from loop.config import load

    return load({name: value for name, value in {**flags, **more}.items() if value is not None}, makes=makes)


def run_work(
    work: Callable[["Context"], Awaitable[T]],
    *,
    is_rotating: bool = False,
    may_lack_keys: bool = False,
    log_level: str = "warning",
) -> T:
    """Open the database, do one piece of work as the operator, and end; of the keys see `runtime.opened`.

    What it logs, the events and jobs that it makes and its entries in the audit log have one correlation id.
    """
    import asyncio

    from loop.runtime import opened
    from loop.telemetry import bind, configure

    settings = load_settings()
    configure(level=log_level, log_format=settings.log_format)

    async def do() -> T:
        async with opened(settings, is_rotating=is_rotating, may_lack_keys=may_lack_keys) as context:
            with bind(correlation_id=context.random_bytes(12).hex()):
                return await work(replace(context, actor=_operator()))

    return asyncio.run(do())


def _operator() -> "Actor":
    """Return who runs the command, as the system knows it: a variable of the environment would be anybody's word."""
    import pwd

    from loop.domain.audit import Actor, ActorKind

    user_id = os.getuid()
    try:
        name = pwd.getpwuid(user_id).pw_name
    except KeyError:  # a container's user without a name
        name = f"uid {user_id}"
    return Actor(ActorKind.OPERATOR, name)


def print_json(value: object) -> None:
    """Print JSON in one line, times as the API writes them."""
    typer.echo(json.dumps(value, default=_in_json, ensure_ascii=False))


def _in_json(value: object) -> str:
    from loop.domain.events import timestamp

    return timestamp(value) if isinstance(value, datetime) else str(value)


def as_sent(model: type[M], fields: Mapping[str, object], *, options: Mapping[str, str] = _NOTHING) -> M:
    """Return what the API would make of these fields, which it judges alike; None counts as not sent.

    A field that it refuses is called by its option: that in `options`, or else the one of the same name.
    """
    from loop.server.request import parse, parse_json, validation_failed

    sent = {name: value for name, value in fields.items() if value is not None}
    try:
        return parse(model, parse_json(json.dumps(sent).encode()))
    except LoopError as error:
        if not error.details:
            raise
        named = ((options.get(field, f"--{field}"), problem) for field, problem in error.details)
        raise validation_failed(*named) from error


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """Print a table, or the rows as a JSON list of objects named by the columns."""
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column == "amount" else "left", no_wrap=column != "details")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # Ids must come out whole, to be copied: a pipe gets a wide table, a narrow terminal scrolls or wraps it.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(width=width, soft_wrap=True, markup=False, emoji=False).print(table)  # names may hold [ ] and : :


def print_record(record: Mapping[str, object], *, as_json: bool) -> None:
    """Print one thing, a line for each of its fields, or as a JSON object."""
    if as_json:
        print_json(dict(record))
        return
    width = max(map(len, record)) + 2
    for name, value in record.items():
        typer.echo(f"{name:{width}}{_cell(value)}".rstrip())


def print_done(record: Mapping[str, object], words: str, *, as_json: bool) -> None:
    """Say in words what was done, or as a JSON object."""
    if as_json:
        print_json(dict(record))
    else:
        typer.echo(words)


@contextmanager
def progress(doing: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how much of how much is done, on a terminal; elsewhere standard output and error stay as they are."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(doing, total=None)

        def told(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield told


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, dict):
        return ", ".join(f"{name}={_cell(each)}" for name, each in value.items() if each not in (None, []))
    if isinstance(value, list):
        return "; ".join(str(each) for each in value)
    return str(value)


def in_utc(moment: datetime | None) -> datetime | None:
    """Return a time that was typed as one in UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)


async def find_merchant(context: "Context", id_or_email: str) -> "Merchant":
    """Return the merchant with this id or address; raises `not_found`."""
    from loop.storage import merchants

    async with context.database.reading() as reader:
        found = await merchants.get(reader, id_or_email) or await merchants.by_email(reader, id_or_email.lower())
    if found is None:
        raise not_found("merchant")
    return found


async def find_order(context: "Context", order_id: str) -> "Order":
    """Return any merchant's order; raises `not_found`."""
    from loop.storage import orders

    async with context.database.reading() as reader:
        found = await orders.find(reader, order_id)
    if found is None:
        raise not_found("order")
    return found
