"""Routing: the forced processor, else the currency's default, else the merchant's priorities, with the reasons."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.errors import LoopError
from loop.domain.routing import Candidate, route


def candidate(processor: str, *, is_enabled: bool = True, priority: int = 1) -> Candidate:
    return Candidate(f"pcf_{processor}", processor, is_enabled, priority)


STRIPE, RAZORPAY, SANDBOX = candidate("stripe"), candidate("razorpay"), candidate("sandbox")
ALL = (STRIPE, RAZORPAY, SANDBOX)


def chosen(currency: str, *candidates: Candidate, forced: str | None = None) -> str:
    return route(currency, candidates, forced_processor=forced).candidate.processor


@pytest.mark.parametrize(
    ("currency", "processor"),
    [("INR", "razorpay"), ("USD", "stripe"), ("EUR", "stripe"), ("GBP", "stripe"), ("JPY", "stripe")],
)
def test_each_currency_has_its_default(currency: str, processor: str) -> None:
    decision = route(currency, ALL, forced_processor=None)
    assert decision.candidate.processor == processor
    assert decision.reasons == (f"{processor} is the default for {currency}",)


def test_the_default_goes_before_priority() -> None:
    assert chosen("USD", candidate("sandbox", priority=1), candidate("stripe", priority=99)) == "stripe"


def test_without_the_default_the_first_priority_takes_it() -> None:
    candidates = (candidate("sandbox", priority=5), candidate("adyen", priority=2), candidate("worldpay", priority=2))
    decision = route("USD", candidates, forced_processor=None)
    assert decision.candidate.processor == "adyen"
    assert decision.reasons == (
        "stripe, the default for USD, is not available",
        "adyen: it has the first priority (2)",
    )


def test_the_only_processor_takes_what_it_can() -> None:
    decision = route("INR", [STRIPE], forced_processor=None)
    assert decision.candidate is STRIPE
    assert decision.reasons[-1] == "stripe: it is the only one"


def test_a_disabled_default_is_left_out_and_named() -> None:
    decision = route("USD", [candidate("stripe", is_enabled=False), SANDBOX], forced_processor=None)
    assert decision.candidate is SANDBOX
    assert decision.reasons[0] == "stripe left out: disabled"


def test_the_forced_processor_is_taken_whatever_the_currency() -> None:
    decision = route("INR", ALL, forced_processor="sandbox")
    assert decision.candidate is SANDBOX
    assert decision.reasons == ("sandbox was asked for",)


@pytest.mark.parametrize(
    ("candidates", "forced"),
    [
        ((), None),
        ((candidate("stripe", is_enabled=False),), None),
        ((), "stripe"),
        ((candidate("stripe", is_enabled=False), SANDBOX), "stripe"),
        ((SANDBOX,), "stripe"),
    ],
)
def test_nobody_to_take_it_is_no_processor(candidates: tuple[Candidate, ...], forced: str | None) -> None:
    with pytest.raises(LoopError) as refused:
        route("USD", candidates, forced_processor=forced)
    assert refused.value.code == "no_processor"


@given(
    st.sampled_from(["INR", "USD", "GBP"]),
    st.lists(
        st.builds(
            candidate,
            st.sampled_from(["stripe", "razorpay", "sandbox", "adyen"]),
            is_enabled=st.booleans(),
            priority=st.integers(1, 100),
        ),
        unique_by=lambda each: each.processor,
    ).flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))),
)
def test_the_order_in_which_configs_are_read_does_not_matter(
    currency: str, lists: tuple[list[Candidate], list[Candidate]]
) -> None:
    def outcome(candidates: list[Candidate]) -> str:
        try:
            decision = route(currency, candidates, forced_processor=None)
        except LoopError as error:
            return error.code
        assert decision.candidate.is_enabled
        return decision.candidate.processor

    assert outcome(lists[0]) == outcome(lists[1])
