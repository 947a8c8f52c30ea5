"""Hints: what an inbound webhook says of a payment, held against what Loop knows of it before anything follows."""

from dataclasses import dataclass

from loop.domain.attempts import Attempt
from loop.domain.money import Money
from loop.domain.refunds import Refund


@dataclass(frozen=True, slots=True)
class Hint:
    """What a verified webhook names: the account that it came by, the payment, and what that (or its refund) is over.

    `payment_reference` and `amount` are None where the webhook does not say.
    """

    account_id: str
    payment_reference: str | None
    amount: Money | None


def contradiction(hint: Hint, attempt: Attempt, *, is_about_payment: bool) -> str | None:
    """Return what a hint says that cannot be true of the attempt which it names, or None.

    `is_about_payment` is false where its amount is that of a refund or a dispute.
    """
    if attempt.processor_config_id != hint.account_id:
        return "it names an attempt that another account has made"
    if hint.payment_reference is not None and attempt.processor_reference not in (None, hint.payment_reference):
        return f"it names {hint.payment_reference} as the payment of an attempt whose payment is another"
    owed = Money(attempt.amount_minor, attempt.currency)
    if is_about_payment and hint.amount is not None and hint.amount != owed:
        return f"it says {hint.amount} of a payment of {owed}"
    return None


def refund_contradiction(hint: Hint, refund: Refund) -> str | None:
    """Return what a hint says that cannot be true of the refund which it names, or None."""
    wanted = Money(refund.amount_minor, refund.currency)
    if hint.amount is not None and hint.amount != wanted:
        return f"it says {hint.amount} of a refund of {wanted}"
    return None
