"""The commands about the audit log: what is in it, and whether all of it is as it was written."""

from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, Limit, find_merchant, print_rows, run_work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loop.domain.audit import AuditEntry
    from loop.workflows.audit import ChainReport
    from loop.workflows.context import Context

audit_app = typer.Typer(help="Who changed what, and proof that nothing of it was altered.", no_args_is_help=True)

OfMerchant = Annotated[str | None, typer.Option("--merchant", help="Only what concerns this id or e-mail address.")]


@audit_app.command("list")
def list_entries(
    *,
    merchant: OfMerchant = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List entries of the audit log, newest first.

    Example: loop audit list --merchant me@example.com
    """
    from loop.storage import audit

    async def work(context: "Context") -> "Sequence[AuditEntry]":
        owner = None if merchant is None else await find_merchant(context, merchant)
        async with context.database.reading() as reader:
            if owner is None:
                return await audit.newest_of_all(reader, limit)
            return await audit.newest(reader, owner.id, before_seq=None, limit=limit)

    rows = [
        (
            entry.created_at,
            entry.merchant_id,
            entry.seq,
            entry.action,
            entry.subject,
            f"{entry.actor_kind} {entry.actor_id or ''}".strip(),
            entry.address,
            {"before": entry.before, "after": entry.after},
        )
        for entry in run_work(work)
    ]
    columns = ("createdAt", "merchantId", "seq", "action", "subject", "actor", "address", "details")
    print_rows(columns, rows, as_json=as_json)


@audit_app.command("verify")
def verify(*, merchant: OfMerchant = None, as_json: AsJson = False) -> None:
    """Follow the audit log's chains from start to end; the exit code is 1 when an entry is missing or was changed.

    Keep the last hashes elsewhere: who can write to the database can write a whole chain anew, but not to those.

    Example: loop audit verify
    """
    from loop.workflows import audit

    async def work(context: "Context") -> "list[ChainReport]":
        owner = None if merchant is None else await find_merchant(context, merchant)
        return await audit.verify(context, None if owner is None else owner.id)

    reports = run_work(work)
    rows = [(each.chain, each.entries, each.hash, each.fault or "whole", each.broken_id) for each in reports]
    print_rows(("chain", "entries", "lastHash", "state", "brokenId"), rows, as_json=as_json)
    broken = [each for each in reports if each.fault]
    for each in broken:
        typer.echo(f"broken: {each.chain} at {each.broken_id or 'its start'}: {each.fault}", err=True)
    raise typer.Exit(1 if broken else 0)
