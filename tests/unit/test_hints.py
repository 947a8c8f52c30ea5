"""Hints: a webhook that contradicts what Loop knows of a payment is found out, and no other is."""

import pytest

from loop.domain.hints import Hint, contradiction, refund_contradiction
from loop.domain.money import Money
from tests.builders import attempt, refund

OURS = Money(1_000, "EUR")
KNOWN = attempt(processor_reference="pi_1")
UNANSWERED = attempt(processor_reference=None)


@pytest.mark.parametrize("amount", [OURS, None])
@pytest.mark.parametrize("reference", ["pi_1", None])
def test_what_fits_is_no_contradiction(amount: Money | None, reference: str | None) -> None:
    for each in (KNOWN, UNANSWERED):
        assert contradiction(Hint("pcf_1", reference, amount), each, is_about_payment=True) is None


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Hint("pcf_2", "pi_1", OURS), "another account"),
        (Hint("pcf_2", None, None), "another account"),
        (Hint("pcf_1", "pi_2", OURS), "pi_2"),
        (Hint("pcf_1", "pi_1", Money(1_001, "EUR")), "10.01 EUR of a payment of 10.00 EUR"),
        (Hint("pcf_1", "pi_1", Money(1_000, "USD")), "10.00 USD of a payment of 10.00 EUR"),
        (Hint("pcf_1", "pi_1", Money(0, "EUR")), "0.00 EUR"),
    ],
)
def test_what_cannot_be_true_is_said_in_words(hint: Hint, words: str) -> None:
    problem = contradiction(hint, KNOWN, is_about_payment=True)
    assert problem is not None
    assert words in problem


def test_a_payment_that_loop_has_not_heard_of_yet_may_have_any_reference_but_not_any_amount() -> None:
    assert contradiction(Hint("pcf_1", "pi_9", OURS), UNANSWERED, is_about_payment=True) is None
    assert contradiction(Hint("pcf_1", "pi_9", Money(1, "EUR")), UNANSWERED, is_about_payment=True) is not None


def test_the_amount_of_a_refund_is_held_against_the_refund_alone() -> None:
    hint = Hint("pcf_1", "pi_1", Money(400, "EUR"))
    assert contradiction(hint, KNOWN, is_about_payment=False) is None
    assert refund_contradiction(hint, refund()) is None
    assert refund_contradiction(Hint("pcf_1", "pi_1", None), refund()) is None
    for wrong in (Money(401, "EUR"), Money(400, "USD")):
        assert refund_contradiction(Hint("pcf_1", "pi_1", wrong), refund()) is not None
