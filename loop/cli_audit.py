"""The commands about the audit log: what is in it, and whether all of it is as it was written."""

from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, Limit, find_merchant, print_rows, progress, run_work
from loop.domain.errors import not_found

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
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List entries of the audit log, newest first.

    The next page begins after the last id: give it as --after.

    Example: loop audit list --merchant me@example.com
    """
    from loop.storage import audit

    async def work(context: "Context") -> "Sequence[AuditEntry]":
        owner = None if merchant is None else await find_merchant(context, merchant)
        async with context.database.reading() as reader:
            last = None if after is None else await audit.get(reader, after)
            if after is not None and (last is None or (owner is not None and last.merchant_id != owner.id)):
                raise not_found("entry to begin after")
            if owner is None:
                return await audit.newest_of_all(reader, limit, before_id=after)
            return await audit.newest(reader, owner.id, before_seq=None if last is None else last.seq, limit=limit)

    rows = [
        (
            entry.id,
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
    columns = ("id", "createdAt", "merchantId", "seq", "action", "subject", "actor", "address", "details")
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

    with progress("verifying"):
        reports = run_work(work)
    rows = [(each.chain, each.entries, each.hash, each.fault or "whole", each.broken_id) for each in reports]
    print_rows(("chain", "entries", "lastHash", "state", "brokenId"), rows, as_json=as_json)
    broken = [each for each in reports if each.fault]
    for each in broken:
        typer.echo(f"broken: {each.chain} at {each.broken_id or 'its start'}: {each.fault}", err=True)
    raise typer.Exit(1 if broken else 0)
