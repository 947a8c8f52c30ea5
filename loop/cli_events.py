"""The commands about events: what happened, as webhooks tell it, and how telling it went."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import (
    AsJson,
    Limit,
    MerchantArgument,
    find_merchant,
    print_json,
    print_record,
    print_rows,
    run_work,
)
from loop.domain.errors import not_found

if TYPE_CHECKING:
    from loop.domain.deliveries import Delivery, DeliveryAttempt
    from loop.domain.events import Event
    from loop.workflows.context import Context

event_app = typer.Typer(help="What happened, as webhooks tell it.", no_args_is_help=True)


@event_app.command("list")
def list_events(
    merchant: MerchantArgument,
    *,
    live: Annotated[bool | None, typer.Option("--live/--test", help="Only those of one mode.")] = None,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List a merchant's events, newest first.

    The next page begins after the last id: give it as --after.

    Example: loop event list me@example.com --limit 10
    """
    from loop.storage import webhooks

    async def work(context: "Context") -> "list[Event]":
        owner = await find_merchant(context, merchant)
        is_test = None if live is None else not live
        async with context.database.reading() as reader:
            if after is not None and await webhooks.event(reader, owner.id, after) is None:
                raise not_found("event to begin after")
            return await webhooks.events_after(reader, owner.id, before_id=after, limit=limit, is_test=is_test)

    rows = [
        (each.id, str(each.event_type), each.order_id, each.is_test, each.created_at, each.correlation_id)
        for each in run_work(work)
    ]
    columns = ("id", "eventType", "orderId", "testMode", "createdAt", "correlationId")
    print_rows(columns, rows, as_json=as_json)


@event_app.command("show")
def show_event(
    merchant: MerchantArgument,
    event_id: Annotated[str, typer.Argument(help="The event's id.", metavar="EVENT")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what an event says, to whom it goes, and how each try went.

    Example: loop event show me@example.com evt_01hx…
    """
    from loop.domain.deliveries import DeliveryStatus
    from loop.storage import deliveries, webhooks

    async def work(context: "Context") -> "tuple[Event, list[Delivery], list[DeliveryAttempt]]":
        owner = await find_merchant(context, merchant)
        async with context.database.reading() as reader:
            event = await webhooks.event(reader, owner.id, event_id)
            if event is None:
                raise not_found("event")
            sent = await deliveries.of_event(reader, owner.id, event_id)
            return event, sent, await deliveries.attempts_of(reader, owner.id, event_id)

    event, sent, tries = run_work(work)
    body = json.loads(event.body)
    goes_to = [
        {
            "endpointId": each.endpoint_id,
            "status": str(each.status),
            "nextAttemptAt": each.next_attempt_at if each.status is DeliveryStatus.PENDING else None,
        }
        for each in sent
    ]
    tried = [
        {
            "at": each.tried_at,
            "endpointId": each.endpoint_id,
            "attempt": each.number,
            "statusCode": each.status_code,
            "durationMs": each.duration_ms,
            "error": each.error,
            "answer": each.answer,
        }
        for each in tries
    ]
    if as_json:
        print_json({"event": body, "correlationId": event.correlation_id, "deliveries": goes_to, "attempts": tried})
        return
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
    if event.correlation_id is not None:
        print_record({"correlationId": event.correlation_id}, as_json=False)
    for rows in (goes_to, tried):
        if rows:
            print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows], as_json=False)
