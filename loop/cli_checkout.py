"""The commands about checkout: links that customers pay by, as an address and as a code for their phone's camera."""

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, MerchantArgument, as_sent, find_merchant, print_json, run_work
from loop.domain.errors import invalid
from loop.domain.money import MAX_AMOUNT_MINOR, Money

if TYPE_CHECKING:
    from loop.storage.checkout import CheckoutSession
    from loop.workflows.context import Context

HOURS_MAX = 30 * 24

checkout_app = typer.Typer(help="Pages that customers pay on.", no_args_is_help=True)


@checkout_app.command("link")
@dataclass(frozen=True, kw_only=True)
class Link:
    """Make a page that a customer pays on, and print its address with a QR code of it.

    Example: loop checkout link me@example.com --amount 4999 --currency EUR --for 'Two desk lamps'
    """

    merchant: MerchantArgument
    amount: Annotated[
        int | None, typer.Option(min=1, max=MAX_AMOUNT_MINOR, help="In minor units: 4999 is 49.99 EUR.")
    ] = None
    currency: Annotated[str, typer.Option(help="Such as USD, EUR or INR.")] = "USD"
    purpose: Annotated[str | None, typer.Option("--for", help="What is paid for; the page shows it.")] = None
    order: Annotated[str | None, typer.Option(help="An order that is there, instead of an amount.")] = None
    email: Annotated[str | None, typer.Option(help="The customer's address.")] = None
    success_url: Annotated[
        str | None, typer.Option(help="Where the customer goes then; without it the page says thanks.")
    ] = None
    cancel_url: Annotated[str | None, typer.Option(help="Where a customer goes who does not pay.")] = None
    hours: Annotated[int, typer.Option(min=1, max=HOURS_MAX, help="How long it can be paid.")] = 24
    live: Annotated[bool, typer.Option("--live/--test", help="Whether it moves real money.")] = False
    qr: Annotated[bool, typer.Option("--qr/--no-qr", help="Whether to print the QR code.")] = True
    as_json: AsJson = False

    def __post_init__(self) -> None:
        if (self.amount is None) is (self.order is None):
            raise invalid("validation_failed", "Give either --amount (with --currency) or --order.")
        session = run_work(self._create)
        if self.as_json:
            print_json({"id": session.id, "url": session.url, "orderId": session.order_id})
            return
        typer.echo(session.url)
        if self.qr:
            _print_code(session.url)

    async def _create(self, context: "Context") -> "CheckoutSession":
        from loop.server.api.checkout import CreateSession
        from loop.workflows import checkout

        lines = [{"name": self.purpose, "amount": self.amount}] if self.purpose is not None and self.amount else []
        fields = {
            "successUrl": self.success_url or context.settings.checkout_base_url,
            "cancelUrl": self.cancel_url,
            "amount": self.amount,
            "currency": None if self.amount is None else self.currency,
            "orderId": self.order,
            "customerEmail": self.email,
            "lineItems": lines,
        }
        options = {"successUrl": "--success-url", "cancelUrl": "--cancel-url", "orderId": "--order"}
        options |= {"customerEmail": "--email", "lineItems.0.name": "--for"}
        sent = as_sent(CreateSession, fields, options=options)
        owner = await find_merchant(context, self.merchant)
        new = checkout.NewSession(
            success_url=self.success_url,
            cancel_url=sent.cancel_url,
            expires_in=timedelta(hours=self.hours),
            amount=None if sent.amount is None or sent.currency is None else Money(sent.amount, sent.currency),
            order_id=sent.order_id,
            customer_email=sent.customer_email,
            line_items=[
                {"name": each.name, "amount": each.amount, "quantity": each.quantity} for each in sent.line_items
            ],
        )
        return await checkout.create_session(replace(context, is_test=not self.live), owner.id, new)


def _print_code(url: str) -> None:
    """Print the code beside the output, which is then the address alone."""
    import sys

    import segno

    segno.make(url, error="m", micro=False).terminal(sys.stderr, compact=True)
