"""What commands work with: the flags before them, one piece of work over an open database, and tables to print."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from loop.domain.errors import not_found

if TYPE_CHECKING:
    from loop.config import Settings
    from loop.domain.audit import Actor
    from loop.storage.merchants import Merchant
    from loop.workflows.context import Context

T = TypeVar("T")

PIPE_WIDTH = 240
"""Columns of a table that is not printed on a terminal."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MerchantArgument = Annotated[str, typer.Argument(help="The merchant's id or e-mail address.", metavar="MERCHANT")]

flags: dict[str, object] = {}
"""What was given before the command."""


def load_settings(**more: object) -> "Settings":
    """Return the settings, these flags among them; None counts as not given."""
    from loop.config import load

    return load({name: value for name, value in {**flags, **more}.items() if value is not None})


def run_work(work: Callable[["Context"], Awaitable[T]], *, is_rotating: bool = False, may_lack_keys: bool = False) -> T:
    """Open the database, do one piece of work as the operator, and end; of the keys see `runtime.opened`."""
    import asyncio

    from loop.runtime import opened
    from loop.telemetry import configure

    settings = load_settings()
    configure(level="warning", log_format=settings.log_format)

    async def do() -> T:
        async with opened(settings, is_rotating=is_rotating, may_lack_keys=may_lack_keys) as context:
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


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """Print a table, or the rows as a JSON list of objects named by the columns."""
    if as_json:
        typer.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=str, ensure_ascii=False))
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


async def find_merchant(context: "Context", id_or_email: str) -> "Merchant":
    """Return the merchant with this id or address; raises `not_found`."""
    from loop.storage import merchants

    async with context.database.reading() as reader:
        found = await merchants.get(reader, id_or_email) or await merchants.by_email(reader, id_or_email.lower())
    if found is None:
        raise not_found("merchant")
    return found
