"""The commands that export what a merchant's books hold, row by row, so that any number fits."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, TypeVar

import typer

from loop.cli_console import MerchantArgument, Since, Until, find_merchant, in_utc, progress, run_work

if TYPE_CHECKING:
    from loop.domain.orders import Order
    from loop.domain.transactions import Transaction
    from loop.workflows.context import Context

Row = TypeVar("Row")

ROWS_AT_ONCE = 500
"""Rows that are in memory at once."""
PAGES_MAX = 1_000_000
"""Pages of so many that one export has at most."""

export_app = typer.Typer(help="A merchant's orders or transactions as CSV or JSON lines.", no_args_is_help=True)

Live = Annotated[bool | None, typer.Option("--live/--test", help="Live once there is a live account.")]
AsLines = Annotated[bool, typer.Option("--json", help="Print a JSON object a line instead of CSV.")]


@dataclass(frozen=True, slots=True)
class Sheet(Generic[Row]):
    """How rows look: the heads of their columns, their cells, and their JSON."""

    columns: Sequence[str]
    cells: Callable[[Row], Sequence[str]]
    json: Callable[[Row], Mapping[str, object]]


@export_app.command("orders")
def export_orders(
    merchant: MerchantArgument,
    *,
    since: Since = None,
    until: Until = None,
    live: Live = None,
    as_json: AsLines = False,
) -> None:
    """Print a merchant's orders of one mode, newest first; amounts in CSV are in major units, in JSON in minor ones.

    Example: loop export orders me@example.com --from 2026-03-01 --to 2026-04-01 > march.csv
    """
    from loop.server.shapes import order_json
    from loop.server.spreadsheets import ORDER_COLUMNS, order_cells
    from loop.storage import orders

    async def rows(context: "Context") -> "AsyncIterator[Sequence[Order]]":
        owner_id, is_test = await _whose(context, merchant, live=live)
        wanted = orders.OrderFilter(created_from=in_utc(since), created_to=in_utc(until), is_test=is_test)
        before_id: str | None = None
        for _ in range(PAGES_MAX):
            async with context.database.reading() as reader:
                page = await orders.list_after(reader, owner_id, wanted, before_id=before_id, limit=ROWS_AT_ONCE)
            yield page
            if len(page) < ROWS_AT_ONCE:
                return
            before_id = page[-1].id

    _print(rows, Sheet(ORDER_COLUMNS, order_cells, order_json), as_json=as_json)


@export_app.command("transactions")
def export_transactions(
    merchant: MerchantArgument,
    *,
    since: Since = None,
    until: Until = None,
    live: Live = None,
    as_json: AsLines = False,
) -> None:
    """Print every movement of a merchant's money in one mode, newest first, failed ones among them.

    Example: loop export transactions me@example.com --from 2026-03-01 --live --json
    """
    from loop.server.spreadsheets import TRANSACTION_COLUMNS, transaction_cells
    from loop.storage import transactions

    async def rows(context: "Context") -> "AsyncIterator[Sequence[Transaction]]":
        owner_id, is_test = await _whose(context, merchant, live=live)
        wanted = transactions.Period(is_test, in_utc(since), in_utc(until))
        before: Transaction | None = None
        for _ in range(PAGES_MAX):
            async with context.database.reading() as reader:
                page = await transactions.list_after(reader, owner_id, wanted, before=before, limit=ROWS_AT_ONCE)
            yield page
            if len(page) < ROWS_AT_ONCE:
                return
            before = page[-1]

    _print(rows, Sheet(TRANSACTION_COLUMNS, transaction_cells, _transaction_json), as_json=as_json)


def _transaction_json(row: "Transaction") -> dict[str, object]:
    from loop.domain.events import timestamp

    return {
        "id": row.id,
        "orderId": row.order_id,
        "createdAt": timestamp(row.created_at),
        "type": row.type,
        "status": row.status,
        "currency": row.currency,
        "amount": row.amount_minor,
        "processor": row.processor,
        "processorTransactionId": row.processor_transaction_id,
        "refundId": row.refund_id,
        "errorCode": row.error_code,
    }


async def _whose(context: "Context", merchant: str, *, live: bool | None) -> tuple[str, bool]:
    from loop.workflows.processor_configs import usual_mode

    owner = await find_merchant(context, merchant)
    async with context.database.reading() as reader:
        return owner.id, await usual_mode(reader, owner.id) == "test" if live is None else not live


def _print(pages: "Callable[[Context], AsyncIterator[Sequence[Row]]]", sheet: Sheet[Row], *, as_json: bool) -> None:
    from loop.server.spreadsheets import csv_text

    async def work(context: "Context") -> None:
        count: int | None = None
        async for page in pages(context):  # the first of which knows whether there is such a merchant
            if count is None and not as_json:
                typer.echo(csv_text([sheet.columns]), nl=False)
            count = count or 0
            lines = (json.dumps(sheet.json(row), ensure_ascii=False) + "\n" for row in page)
            typer.echo("".join(lines) if as_json else csv_text(map(sheet.cells, page)), nl=False)
            count += len(page)
            told(count, None)

    with progress("exporting") as told:
        run_work(work)
