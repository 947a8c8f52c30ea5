"""The commands about webhooks: where a merchant listens, what was sent there, and sending it again."""

from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import (
    AsJson,
    Limit,
    MerchantArgument,
    Since,
    as_sent,
    find_merchant,
    in_utc,
    print_done,
    print_record,
    print_rows,
    run_work,
)
from loop.domain.errors import invalid, not_found

if TYPE_CHECKING:
    from loop.storage.deliveries import EventWithDelivery
    from loop.storage.webhooks import Endpoint
    from loop.workflows.context import Context
    from loop.workflows.deliveries import Replay

webhook_app = typer.Typer(help="Where merchants listen, and what was sent there.", no_args_is_help=True)

EndpointArgument = Annotated[str, typer.Argument(help="The endpoint's id, from the list.", metavar="ENDPOINT")]


@webhook_app.command("list")
def list_endpoints(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's endpoints and how they are doing; their secrets are not shown.

    Example: loop webhook list me@example.com
    """
    from loop.workflows import webhook_endpoints

    async def work(context: "Context") -> "list[Endpoint]":
        return await webhook_endpoints.list_endpoints(context, (await find_merchant(context, merchant)).id)

    rows = [
        (each.id, each.url, list(each.event_types), each.is_enabled, each.disabled_reason, each.paused_until)
        for each in run_work(work)
    ]
    columns = ("id", "url", "events", "enabled", "disabledReason", "pausedUntil")
    print_rows(columns, rows, as_json=as_json)


@webhook_app.command("add")
def add_endpoint(
    merchant: MerchantArgument,
    url: Annotated[str, typer.Argument(help="Where it listens.", metavar="URL")],
    *,
    event: Annotated[list[str] | None, typer.Option(help="Such as payment.captured; all without it.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add an endpoint and show its signing secret.

    Example: loop webhook add me@example.com https://shop.example/hook --event payment.captured
    """
    from loop.domain.events import EventType
    from loop.server.api.webhook_endpoints import NewEndpointBody
    from loop.storage.webhooks import ALL_EVENTS
    from loop.workflows import webhook_endpoints
    from loop.workflows.webhooks import reveal_secret

    names = event or [ALL_EVENTS]
    if unknown := [name for name in names if name not in {ALL_EVENTS, *EventType}]:
        raise invalid("validation_failed", f"{unknown[0]} is no event; there are {', '.join(EventType)}.")
    as_sent(NewEndpointBody, {"url": url, "description": description, "events": names}, options={"url": "URL"})

    async def work(context: "Context") -> "tuple[Endpoint, str]":
        new = webhook_endpoints.NewEndpoint(url, description, tuple(names))
        endpoint = await webhook_endpoints.create(context, (await find_merchant(context, merchant)).id, new)
        return endpoint, reveal_secret(context, endpoint)

    endpoint, secret = run_work(work)
    print_record({"id": endpoint.id, "url": endpoint.url, "secret": secret}, as_json=as_json)


@webhook_app.command("remove")
def remove_endpoint(merchant: MerchantArgument, endpoint: EndpointArgument, *, as_json: AsJson = False) -> None:
    """Remove an endpoint; what waits for it fails.

    Example: loop webhook remove me@example.com ep_01hx…
    """
    from loop.workflows import webhook_endpoints

    async def work(context: "Context") -> None:
        await webhook_endpoints.remove(context, (await find_merchant(context, merchant)).id, endpoint)

    run_work(work)
    print_done({"id": endpoint, "removed": True}, f"{endpoint} is removed.", as_json=as_json)


@webhook_app.command("rotate")
def rotate_secret(merchant: MerchantArgument, endpoint: EndpointArgument, *, as_json: AsJson = False) -> None:
    """Make an endpoint's next secret and show it: it signs beside the one before, and alone after a day or a promotion.

    Example: loop webhook rotate me@example.com ep_01hx…
    """
    from loop.workflows import webhook_endpoints
    from loop.workflows.webhooks import signing_secrets

    async def work(context: "Context") -> str | None:
        owner = await find_merchant(context, merchant)
        return signing_secrets(context, await webhook_endpoints.rotate_secret(context, owner.id, endpoint)).pending

    print_record({"id": endpoint, "pendingSecret": run_work(work)}, as_json=as_json)


@webhook_app.command("promote")
def promote_secret(merchant: MerchantArgument, endpoint: EndpointArgument, *, as_json: AsJson = False) -> None:
    """Let an endpoint's next secret be the only one from now on.

    Example: loop webhook promote me@example.com ep_01hx…
    """
    from loop.workflows import webhook_endpoints

    async def work(context: "Context") -> None:
        await webhook_endpoints.promote_secret(context, (await find_merchant(context, merchant)).id, endpoint)

    run_work(work)
    print_done({"id": endpoint, "promoted": True}, f"{endpoint} has one secret now, the new one.", as_json=as_json)


@webhook_app.command("test")
def send_trial(merchant: MerchantArgument, endpoint: EndpointArgument, *, as_json: AsJson = False) -> None:
    """Have the running Loop send an endpoint an event that says nothing; `loop event show` tells how it went.

    Example: loop webhook test me@example.com ep_01hx…
    """
    from loop.workflows import deliveries

    async def work(context: "Context") -> str:
        return await deliveries.send_trial(context, (await find_merchant(context, merchant)).id, endpoint)

    event_id = run_work(work)
    print_done({"id": event_id}, f"{event_id} is on its way.", as_json=as_json)


@webhook_app.command("deliveries")
def list_deliveries(
    merchant: MerchantArgument,
    *,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    after: Annotated[
        str | None, typer.Option(help="The last row of the page before.", metavar="EVENT_ID:ENDPOINT_ID")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List deliveries to a merchant's endpoints, those of the newest events first.

    The next page begins after the last row: give its eventId and endpointId as --after.

    Example: loop webhook deliveries me@example.com --status failed
    """
    from loop.domain.deliveries import DeliveryStatus
    from loop.storage import deliveries

    if status is not None and status not in set(DeliveryStatus):
        raise invalid("validation_failed", f"--status must be one of {', '.join(DeliveryStatus)}.")
    event_id, _, endpoint_id = (after or "").partition(":")

    async def work(context: "Context") -> "list[EventWithDelivery]":
        owner = await find_merchant(context, merchant)
        wanted = deliveries.DeliveryFilter(status=None if status is None else DeliveryStatus(status))
        async with context.database.reading() as reader:
            sent = await deliveries.of_event(reader, owner.id, event_id) if event_id else []
            if after is not None and endpoint_id not in {each.endpoint_id for each in sent}:
                raise not_found("delivery to begin after")
            before = None if after is None else (event_id, endpoint_id)
            return await deliveries.list_after(reader, owner.id, wanted, before=before, limit=limit)

    rows = [
        (
            each.event.id,
            str(each.event.event_type),
            each.delivery.endpoint_id,
            str(each.delivery.status),
            each.delivery.attempts,
            each.delivery.last_error or each.delivery.last_status_code,
            each.delivery.next_attempt_at if each.delivery.status is DeliveryStatus.PENDING else None,
        )
        for each in run_work(work)
    ]
    columns = ("eventId", "eventType", "endpointId", "status", "attempts", "lastAnswer", "nextAttemptAt")
    print_rows(columns, rows, as_json=as_json)


@webhook_app.command("replay")
def replay(
    merchant: MerchantArgument,
    endpoint: EndpointArgument,
    *,
    since: Since = None,
    event: Annotated[str | None, typer.Option(help="This event alone, delivered before or not.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have the running Loop send an endpoint again what failed since a moment, or one event.

    Example: loop webhook replay me@example.com ep_01hx… --from 2026-03-01
    """
    from loop.workflows import deliveries

    moment = in_utc(since)
    if (moment is None) is (event is None):
        raise invalid("validation_failed", "Give either --from or --event.")

    async def work(context: "Context") -> "Replay":
        owner = await find_merchant(context, merchant)
        if moment is not None:
            return await deliveries.replay(context, owner.id, endpoint, since=moment)
        await deliveries.retry(context, owner.id, str(event), endpoint_id=endpoint)
        return deliveries.Replay(1, has_more=False)

    done = run_work(work)
    words = f"{done.count} deliveries are sent again." + (" There are more: run this again." if done.has_more else "")
    print_done({"replayed": done.count, "hasMore": done.has_more}, words, as_json=as_json)
