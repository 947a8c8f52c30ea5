"""The commands about orders: listing and showing them, and moving their money."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import (
    AsJson,
    Limit,
    MerchantArgument,
    Since,
    Until,
    as_sent,
    find_merchant,
    find_order,
    in_utc,
    print_json,
    print_record,
    print_rows,
    run_work,
)
from loop.domain.errors import invalid, not_found
from loop.domain.money import MAX_AMOUNT_MINOR, Money, require_currency

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loop.domain.orders import Order
    from loop.domain.refunds import Refund
    from loop.storage.orders import OrderInHand
    from loop.workflows.context import Context
    from loop.workflows.timeline import Entry

FAILED_EXIT_CODE = 10
"""A payment was declined or a refund refused: nothing is wrong with the command, and the money did not move."""
WAIT_S = 20
"""How long a command waits for the processor; what is not known by then goes on in the running Loop."""

order_app = typer.Typer(help="Orders and what became of them.", no_args_is_help=True)

OrderArgument = Annotated[str, typer.Argument(help="The order's id.", metavar="ORDER")]
Amount = Annotated[
    int | None, typer.Option(min=1, max=MAX_AMOUNT_MINOR, help="In minor units: 4999 is 49.99 USD; all without it.")
]
Reason = Annotated[str | None, typer.Option(help="Why; it is kept with the order.")]


@order_app.command("list")
@dataclass(frozen=True, kw_only=True)
class OrderList:
    """List a merchant's orders of one mode, newest first.

    The next page begins after the last id: give it as --after.

    Example: loop order list me@example.com --status failed --from 2026-03-01 --processor stripe
    """

    merchant: MerchantArgument
    status: Annotated[str | None, typer.Option(help="Such as captured.")] = None
    processor: Annotated[str | None, typer.Option(help="Such as stripe.")] = None
    currency: Annotated[str | None, typer.Option(help="Such as USD.")] = None
    external_id: Annotated[str | None, typer.Option(help="The shop's own id.")] = None
    email: Annotated[str | None, typer.Option(help="The customer's address.")] = None
    since: Since = None
    until: Until = None
    review: Annotated[bool, typer.Option("--review", help="Only those that a person must look at.")] = False
    live: Annotated[bool | None, typer.Option("--live/--test", help="Live once there is a live account.")] = None
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None
    limit: Limit = 50
    as_json: AsJson = False

    def __post_init__(self) -> None:
        from loop.domain.orders import OrderStatus
        from loop.server.shapes import order_json

        if self.status is not None and self.status not in set(OrderStatus):
            raise invalid("validation_failed", f"--status must be one of {', '.join(OrderStatus)}.")
        found = run_work(self._list)
        if self.as_json:
            print_json([order_json(each) for each in found])
            return
        rows = [(o.id, o.external_id, str(o.amount), str(o.status), o.processor, o.created_at) for o in found]
        columns = ("id", "externalId", "amount", "status", "processor", "createdAt")
        print_rows(columns, rows, as_json=False)

    async def _list(self, context: "Context") -> "list[Order]":
        from loop.storage import orders
        from loop.workflows.processor_configs import usual_mode

        owner = await find_merchant(context, self.merchant)
        async with context.database.reading() as reader:
            is_test = await usual_mode(reader, owner.id) == "test" if self.live is None else not self.live
            wanted = orders.OrderFilter(
                status=self.status,
                processor=self.processor,
                currency=None if self.currency is None else require_currency(self.currency),
                external_id=self.external_id,
                customer_email=self.email,
                created_from=in_utc(self.since),
                created_to=in_utc(self.until),
                needs_review=True if self.review else None,
                is_test=is_test,
            )
            if self.after is not None and await orders.get(reader, owner.id, self.after) is None:
                raise not_found("order to begin after")
            found = await orders.list_after(reader, owner.id, wanted, before_id=self.after, limit=self.limit)
        if not found and self.processor is not None:
            context.processors.get(self.processor)  # an unknown name is an error, not an empty list
        return found


@order_app.command("show")
def show_order(order_id: OrderArgument, *, as_json: AsJson = False) -> None:
    """Show what became of an order: attempts and why they were routed so, money, events and deliveries.

    Example: loop order show ord_01hx…
    """
    from loop.server.shapes import order_json
    from loop.workflows import timeline

    async def work(context: "Context") -> "tuple[Order, list[Entry]]":
        return await timeline.find(context, order_id)

    order, entries = run_work(work)
    if as_json:
        told = [{"at": e.at, "kind": e.kind, "what": e.title, "details": dict(e.details)} for e in entries]
        print_json({"order": order_json(order), "timeline": told})
        return
    disputed = Money(order.amount_disputed_minor, order.currency)
    besides = f"  {disputed} disputed" if disputed.amount_minor else ""
    typer.echo(f"{order.id}  {order.amount}  {order.status}{besides}")
    rows = [(entry.at, entry.kind, entry.title, dict(entry.details)) for entry in entries]
    print_rows(("at", "kind", "what", "details"), rows, as_json=False)


@order_app.command("pay")
@dataclass(frozen=True, kw_only=True)
class Pay:
    """Pay a pending order, as its shop would by `POST /v1/orders/:id/pay`.

    The token is the processor's own for the customer's card; without one the customer must pay in a browser. Exit code
    10 when the payment failed.

    Example: loop order pay ord_01hx… --token tok_approve
    """

    order_id: OrderArgument
    token: Annotated[str | None, typer.Option(help="Such as tok_approve of the sandbox.")] = None
    method: Annotated[str, typer.Option(help="card, upi, netbanking or wallet.")] = "card"
    processor: Annotated[str | None, typer.Option(help="Only this one, whatever the rules say.")] = None
    retry: Annotated[bool, typer.Option("--retry", help="Try a failed order again.")] = False
    as_json: AsJson = False

    def __post_init__(self) -> None:
        from loop.domain.orders import OrderStatus
        from loop.server.shapes import payment_json

        paid = run_work(self._pay)
        print_record(payment_json(paid), as_json=self.as_json)
        if paid.order.status is OrderStatus.FAILED:
            raise typer.Exit(FAILED_EXIT_CODE)

    async def _pay(self, context: "Context") -> "OrderInHand":
        from loop.server.payment_methods import PaymentMethod
        from loop.workflows import payments
        from loop.workflows.attempts import PayRequest

        way = as_sent(PaymentMethod, {"type": self.method.lower(), "token": self.token}, options={"type": "--method"})
        order = await find_order(context, self.order_id)
        request = PayRequest(payment_method=way.type, token=way.token, processor=self.processor, is_retry=self.retry)
        return await payments.pay(context, order.merchant_id, order.id, request=request, wait_s=WAIT_S)


@order_app.command("capture")
def capture(order_id: OrderArgument, *, amount: Amount = None, as_json: AsJson = False) -> None:
    """Take an authorized order's money, all of it or a part; the rest is released.

    Example: loop order capture ord_01hx… --amount 2500
    """
    from loop.workflows import captures

    async def work(context: "Context", order: "Order") -> "Order":
        return await captures.capture(context, order.merchant_id, order.id, amount_minor=amount, wait_s=WAIT_S)

    _move(order_id, work, as_json=as_json)


NotCharged = Annotated[
    bool, typer.Option("--not-charged", help="You have looked at the processor: it has no such payment.")
]


@order_app.command("cancel")
def cancel(
    order_id: OrderArgument, *, reason: Reason = None, not_charged: NotCharged = False, as_json: AsJson = False
) -> None:
    """Cancel an order that is not paid, at its processor first.

    With --not-charged it is not asked: for an order that stays in processing because the processor does not find the
    payment. That takes a --reason, and is possible 23 hours after the payment began.

    Example: loop order cancel ord_01hx… --reason 'out of stock'
    """
    from loop.server.api.orders import CancelOrder
    from loop.workflows import captures, reviews

    as_sent(CancelOrder, {"reason": reason})

    async def work(context: "Context", order: "Order") -> "Order":
        if not_charged:
            return await reviews.settle_unpaid(context, order.merchant_id, order.id, note=reason or "")
        return await captures.cancel(context, order.merchant_id, order.id, reason=reason, wait_s=WAIT_S)

    _move(order_id, work, as_json=as_json)


def _move(order_id: str, work: "Callable[[Context, Order], Awaitable[Order]]", *, as_json: bool) -> None:
    from loop.server.shapes import order_json

    async def find_and_move(context: "Context") -> "Order":
        return await work(context, await find_order(context, order_id))

    order = run_work(find_and_move)
    if as_json:
        print_record(order_json(order), as_json=True)
    else:
        typer.echo(f"{order.id}  {order.amount}  {order.status}")


@order_app.command("refund")
def refund(order_id: OrderArgument, *, amount: Amount = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Give back a paid order's money, all that is left or a part; the exit code is 10 when the processor refuses.

    Example: loop order refund ord_01hx… --amount 1000 --reason 'one came broken'
    """
    from loop.domain.refunds import PUBLIC_STATUS, RefundStatus
    from loop.server.api.refunds import RefundOrder
    from loop.workflows import refunds

    as_sent(RefundOrder, {"amount": amount, "reason": reason})

    async def work(context: "Context") -> "Refund":
        order = await find_order(context, order_id)
        return await refunds.refund(
            context, order.merchant_id, order.id, amount_minor=amount, reason=reason, wait_s=WAIT_S
        )

    row = run_work(work)
    shown = {"id": row.id, "orderId": row.order_id, "amount": row.amount_minor, "currency": row.currency}
    print_record({**shown, "status": PUBLIC_STATUS[row.status], "error": row.error_message}, as_json=as_json)
    if row.status is RefundStatus.FAILED:
        raise typer.Exit(FAILED_EXIT_CODE)
