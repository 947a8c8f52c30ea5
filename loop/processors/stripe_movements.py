"""Stripe's balance transactions: which of them are charges and refunds, and what moved in the charge's own currency."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING, Final

import stripe

from loop.domain.money import Money
from loop.domain.movements import Movement, MovementKind
from loop.processors.base import MovementPage, MovementQuery
from loop.processors.stripe_answers import loop_amount

if TYPE_CHECKING:
    from stripe.params import BalanceTransactionListParams

PAGE_SIZE: Final = 100

LISTED_WITHIN: Final = timedelta(hours=1)
"""A balance transaction is made together with what moves the money; this much is for two clocks that differ."""

KINDS: Mapping[str, MovementKind] = {
    "charge": MovementKind.CHARGE,
    "payment": MovementKind.CHARGE,
    "payment_failure_refund": MovementKind.CHARGE_REVERSAL,
    "payment_reversal": MovementKind.CHARGE_REVERSAL,
    "refund": MovementKind.REFUND,
    "payment_refund": MovementKind.REFUND,
    "refund_failure": MovementKind.REFUND_REVERSAL,
}
"""Types of balance transactions that are movements; the others are Stripe's fees, payouts, disputes and the like."""


async def movement_page(client: stripe.StripeClient, query: MovementQuery) -> MovementPage:
    """Return a page of an account's movements, newest first. An uncaptured hold has no balance transaction.

    Raises what the SDK raises, and TypeError for a list that makes no sense.
    """
    params: BalanceTransactionListParams = {
        "created": {"gte": int(query.since.timestamp()), "lt": ceil(query.until.timestamp())},
        "limit": PAGE_SIZE,
        "expand": ["data.source"],
    }
    if query.cursor is not None:
        params["starting_after"] = query.cursor
    page = await client.v1.balance_transactions.list_async(params)
    movements = tuple(_movement(each, KINDS[each.type]) for each in page.data if each.type in KINDS)
    return MovementPage(movements, page.data[-1].id if page.has_more else None)


def _movement(row: stripe.BalanceTransaction, kind: MovementKind) -> Movement:
    source = row.source
    if not isinstance(source, stripe.Charge | stripe.Refund):
        raise TypeError(f"Stripe does not say what {row.type} {row.id} is of")
    intent, metadata = source.payment_intent, source.metadata.to_dict() if source.metadata is not None else {}
    return Movement(
        kind,
        source.id,
        _amount(row, source),
        datetime.fromtimestamp(row.created, UTC),
        payment_reference=intent if isinstance(intent, str | None) else intent.id,
        attempt_id=_text(metadata.get("loop_attempt_id")),
        refund_id=_text(metadata.get("loop_refund_id")),
        fee=_money(row.fee, row.currency),
    )


def _amount(row: stripe.BalanceTransaction, source: stripe.Charge | stripe.Refund) -> Money:
    """Return what moved in the currency of the charge: the row's own may be that of the account's balance."""
    if row.currency == source.currency:
        return _money(abs(row.amount), row.currency)
    of_source = source.amount if isinstance(source, stripe.Refund) else source.amount_captured
    return _money(of_source, source.currency)


def _money(stripe_minor: int, stripe_currency: str) -> Money:
    currency = stripe_currency.upper()
    return Money(loop_amount(stripe_minor, currency), currency)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
