"""The command that compares Loop's books with the processors' lists, and the report that it prints."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from loop.cli_console import AsJson, find_merchant, print_rows, run_work
from loop.domain.errors import LoopError, unavailable

if TYPE_CHECKING:
    from loop.storage.merchants import Merchant
    from loop.storage.processor_configs import ProcessorConfig
    from loop.workflows.context import Context
    from loop.workflows.reconciliation import Report

    Account: TypeAlias = tuple[Merchant, ProcessorConfig]

MERCHANTS_MAX = 10_000
"""Merchants that one command goes through."""

MISMATCH_EXIT_CODE = 1


@dataclass(frozen=True)
class Compared:
    """An account and what its comparison came to: a report, or in words why there is none."""

    merchant: str
    processor: str
    report: "Report | None" = None
    trouble: str | None = None
    is_unlisted: bool = False
    """Whether the processor does not list what moved at this account."""


def reconcile(
    *,
    merchant: Annotated[str | None, typer.Option(help="The merchant's id or e-mail address; all without it.")] = None,
    processor: Annotated[str | None, typer.Option(help="Such as stripe; all without it.")] = None,
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="A UTC day that is over; yesterday without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a day of the accounts with what their processors list, and print what differs.

    What it finds is kept and told to the merchant as if the schedule had found it. Exit code 1 when anything differs.

    Example: loop reconcile --merchant me@example.com --day 2026-03-01
    """

    async def work(context: "Context") -> list[Compared]:
        wanted = (context.now() - timedelta(days=1)).date() if day is None else day.date()
        return await _compare_all(context, await _accounts(context, merchant, processor), wanted)

    compared = run_work(work)
    if as_json:
        typer.echo(json.dumps([_json(each) for each in compared], ensure_ascii=False))
    else:
        _print(compared)
    if any(each.report is not None and each.report.run.mismatch_count for each in compared):
        raise typer.Exit(MISMATCH_EXIT_CODE)
    silent = [each.processor for each in compared if each.trouble is not None]
    if silent:
        raise unavailable("not_compared", f"Not every account could be compared ({', '.join(silent)}); try again.")


async def _accounts(context: "Context", merchant: str | None, processor: str | None) -> "list[Account]":
    from loop.storage import merchants, processor_configs

    if processor is not None:
        context.processors.get(processor)  # an unknown name is an error, not an empty report
    async with context.database.reading() as reader:
        if merchant is None:
            owners = await merchants.list_all(reader, MERCHANTS_MAX)
        else:
            owners = [await find_merchant(context, merchant)]
        return [
            (owner, config)
            for owner in owners
            for config in await processor_configs.of_merchant(reader, owner.id)
            if processor in (None, config.processor)
        ]


async def _compare_all(context: "Context", accounts: "Sequence[Account]", day: date) -> list[Compared]:
    from rich.console import Console
    from rich.progress import Progress

    compared = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(accounts))
        for merchant, config in accounts:
            progress.update(task, description=f"{config.processor} of {merchant.email}")
            compared.append(await _compare(context, merchant, config, day))
            progress.advance(task)
    return compared


async def _compare(context: "Context", merchant: "Merchant", config: "ProcessorConfig", day: date) -> Compared:
    from loop.domain.errors import ErrorKind
    from loop.storage.keyring import DecryptionError
    from loop.workflows import reconciliation

    try:
        report = await reconciliation.reconcile(context, config.id, day)
    except DecryptionError:
        return Compared(merchant.email, config.processor, trouble="The credentials cannot be read; set them again.")
    except LoopError as error:
        if error.code == "movements_not_listed":
            return Compared(merchant.email, config.processor, is_unlisted=True)
        if error.kind is not ErrorKind.UNAVAILABLE:
            raise
        return Compared(merchant.email, config.processor, trouble=error.message)
    return Compared(merchant.email, config.processor, report)


def _json(compared: Compared) -> dict[str, object]:
    from loop.server.api.reconciliation import run_json
    from loop.workflows.reconciliation import told

    account: dict[str, object] = {"merchant": compared.merchant, "processor": compared.processor}
    if compared.report is None:
        return {**account, "status": "not_listed" if compared.is_unlisted else "failed", "error": compared.trouble}
    findings = [told(each) for each in compared.report.findings]
    return {**account, **run_json(compared.report.run), "findings": findings}


def _print(compared: Sequence[Compared]) -> None:
    if not compared:
        typer.echo("There is no processor account to compare.")
        return
    rows: list[list[object]] = []
    for each in compared:
        if each.report is None:
            why = "does not list what moved" if each.is_unlisted else each.trouble
            rows.append([each.merchant, each.processor, None, None, None, None, None, None, why])
            continue
        run = each.report.run
        counts = [run.matched_count, run.awaited_count, run.missing_here_count, run.missing_there_count,
                  run.amount_differs_count]  # fmt: skip
        rows.append([each.merchant, each.processor, run.day, *counts, "DIFFERS" if run.mismatch_count else "agrees"])
    columns = ("merchant", "processor", "day", "matched", "awaited", "missing here", "missing there", "amount differs")
    print_rows((*columns, "result"), rows, as_json=False)
    differing = [
        (each.merchant, each.processor, found.kind, found.movement_kind, found.reference, found.order_id, found.here,
         found.there, found.occurred_at)
        for each in compared if each.report is not None for found in each.report.findings
    ]  # fmt: skip
    if differing:
        columns = ("merchant", "processor", "what", "movement", "reference", "order", "in Loop", "at the processor")
        print_rows((*columns, "at"), differing, as_json=False)
