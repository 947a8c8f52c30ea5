"""The commands about checkout: links that customers pay by, as an address and as a code for their phone's camera."""

import json
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, MerchantArgument, find_merchant, run_work
from loop.domain.errors import invalid
from loop.domain.money import MAX_AMOUNT_MINOR, Money, require_currency

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
            typer.echo(json.dumps({"id": session.id, "url": session.url, "orderId": session.order_id}))
            return
        typer.echo(session.url)
        if self.qr:
            _print_code(session.url)

    async def _create(self, context: "Context") -> "CheckoutSession":
        from loop.server.request import require_web_url
        from loop.workflows import checkout

        for name, url in (("--success-url", self.success_url), ("--cancel-url", self.cancel_url)):
            try:
                require_web_url(url or context.settings.checkout_base_url)
            except ValueError as error:
                raise invalid("validation_failed", f"{name} {error}.") from error
        line = {"name": self.purpose, "amount": self.amount, "quantity": 1}
        owner = await find_merchant(context, self.merchant)
        new = checkout.NewSession(
            success_url=self.success_url,
            cancel_url=self.cancel_url,
            expires_in=timedelta(hours=self.hours),
            amount=None if self.amount is None else Money(self.amount, require_currency(self.currency)),
            order_id=self.order,
            customer_email=self.email,
            line_items=[] if self.purpose is None or self.amount is None else [line],
        )
        return await checkout.create_session(replace(context, is_test=not self.live), owner.id, new)


def _print_code(url: str) -> None:
    """Print the code beside the output, which is then the address alone."""
    import sys

    import segno

    segno.make(url, error="m", micro=False).terminal(sys.stderr, compact=True)
