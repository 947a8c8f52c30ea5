"""The commands about routing: a merchant's rules, and where a payment would go."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, MerchantArgument, as_sent, find_merchant, print_json, print_rows, run_work
from loop.domain.money import MAX_AMOUNT_MINOR, Money
from loop.domain.routing_rules import PaymentTraits

if TYPE_CHECKING:
    from loop.domain.routing import RoutingDecision
    from loop.storage.routing import StoredRule
    from loop.workflows.context import Context

routing_app = typer.Typer(help="Where payments go, and why.", no_args_is_help=True)


@routing_app.command("list")
def list_rules(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's routing rules in the order in which they are tried.

    Example: loop routing list me@example.com
    """
    from loop.server.api.routing_rules import rule_json
    from loop.workflows import routing

    async def work(context: "Context") -> "list[StoredRule]":
        return await routing.list_rules(context, (await find_merchant(context, merchant)).id)

    shown = [rule_json(stored) for stored in run_work(work)]
    columns = ("id", "priority", "enabled", "name", "conditions", "processors", "split")
    print_rows(columns, [[each.get(name) for name in columns] for each in shown], as_json=as_json)


@routing_app.command("test")
@dataclass(frozen=True, kw_only=True)
class Example:
    """Say who would take a payment, and why; nothing is charged.

    Circuit breakers are the running Loop's own: ask it by POST /api/routing-rules/test to have them counted.

    Example: loop routing test me@example.com --amount 4999 --currency USD --brand visa
    """

    merchant: MerchantArgument
    amount: Annotated[int, typer.Option(min=1, max=MAX_AMOUNT_MINOR, help="In minor units: 4999 is 49.99 USD.")]
    currency: Annotated[str, typer.Option(help="Such as USD, EUR or INR.")]
    brand: Annotated[str | None, typer.Option(help="The card's, such as visa.")] = None
    country: Annotated[str | None, typer.Option(help="The card's, such as IN.")] = None
    method: Annotated[str, typer.Option(help="card, upi, netbanking or wallet.")] = "card"
    live: Annotated[bool, typer.Option("--live/--test", help="Whether it would move real money.")] = False
    as_json: AsJson = False

    def __post_init__(self) -> None:
        from loop.server.api.routing_rules import decision_json

        decision = run_work(self._try_out)
        if self.as_json:
            print_json(decision_json(decision))
            return
        typer.echo(f"{decision.candidate.processor} takes it." if decision.candidates else "Nobody can take it.")
        for reason in decision.reasons:
            typer.echo(f"  {reason}")

    async def _try_out(self, context: "Context") -> "RoutingDecision":
        from loop.domain.ids import PREFIX_ORDER
        from loop.server.api.routing_rules import ExamplePayment
        from loop.server.payment_methods import PaymentMethod
        from loop.workflows import routing

        method = {"type": self.method.lower(), "brand": self.brand, "country": self.country}
        way = as_sent(PaymentMethod, method, options={"type": "--method"})
        sent = as_sent(ExamplePayment, {"amount": self.amount, "currency": self.currency})
        payment = PaymentTraits(
            order_id=context.new_id(PREFIX_ORDER),
            amount=Money(sent.amount, sent.currency),
            payment_method=way.type,
            brand=way.brand,
            country=way.country,
            is_test=not self.live,
        )
        merchant = await find_merchant(context, self.merchant)
        return await routing.try_out(context, merchant.id, payment, forced_processor=None)
