"""Routing rules: what matches, who is drawn by a split, what contradicts itself, and what is never reached."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.routing_rules import (
    MAX_TARGETS,
    MAX_WEIGHT,
    Conditions,
    PaymentTraits,
    Rule,
    first_match,
    require_sound,
    share_out,
    tied_to,
    warnings_about,
)

INSTALLED = ("razorpay", "sandbox", "stripe")


def payment(**changes: object) -> PaymentTraits:
    usual = PaymentTraits(
        "ord_1",
        Money(1_000, "INR"),
        payment_method="card",
        brand="visa",
        country="IN",
        metadata={"plan": "pro", "seats": 3, "gift": True, "share": 0.5, "deep": {"a": 1}},
    )
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def rule(rule_id: str = "rul_1", priority: int = 1, **changes: object) -> Rule:
    usual = Rule(rule_id, rule_id.upper(), priority, is_enabled=True, conditions=Conditions(), processors=("stripe",))
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


@pytest.mark.parametrize(
    ("conditions", "is_match"),
    [
        (Conditions(), True),
        (Conditions(currencies=("USD", "INR")), True),
        (Conditions(currencies=("USD",)), False),
        (Conditions(amount_min_minor=1_000, amount_max_minor=1_000), True),
        (Conditions(amount_min_minor=1_001), False),
        (Conditions(amount_max_minor=999), False),
        (Conditions(brands=("visa", "rupay")), True),
        (Conditions(brands=("amex",)), False),
        (Conditions(countries=("IN",)), True),
        (Conditions(countries=("US",)), False),
        (Conditions(payment_methods=("upi", "card")), True),
        (Conditions(payment_methods=("upi",)), False),
        (Conditions(metadata={"plan": "pro", "seats": 3, "gift": True, "share": 0.5}), True),
        (Conditions(metadata={"plan": "Pro"}), False),
        (Conditions(metadata={"seats": "3"}), False),
        (Conditions(metadata={"seats": True}), False),
        (Conditions(metadata={"gift": 1}), False),
        (Conditions(metadata={"absent": "x"}), False),
        (Conditions(metadata={"plan": "pro", "absent": "x"}), False),
        (Conditions(currencies=("INR",), brands=("amex",)), False),
    ],
)
def test_conditions(conditions: Conditions, *, is_match: bool) -> None:
    assert conditions.match(payment()) is is_match


def test_what_is_not_known_of_a_payment_matches_no_condition_about_it() -> None:
    unknown = payment(brand=None, country=None, metadata={})
    for conditions in (Conditions(brands=("visa",)), Conditions(countries=("IN",)), Conditions(metadata={"a": False})):
        assert not conditions.match(unknown)


def test_the_first_enabled_rule_that_matches_decides() -> None:
    rules = [
        rule("rul_4", 2),
        rule("rul_3", 2),
        rule("rul_2", 1, is_enabled=False),
        rule("rul_1", 1, conditions=Conditions(currencies=("USD",))),
    ]
    assert first_match(rules, payment()) == rule("rul_3", 2)  # of equal priority the older
    assert first_match(rules[2:], payment()) is None


@given(st.text(max_size=40), st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, MAX_WEIGHT), min_size=1))
def test_a_split_always_draws_the_same_and_everybody_once(order_id: str, weights: dict[str, int]) -> None:
    drawn = share_out(order_id, weights)
    assert sorted(drawn) == sorted(weights)
    assert share_out(order_id, dict(reversed(weights.items()))) == drawn


@settings(max_examples=12)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 100), min_size=2), st.integers(0, 10**6))
def test_a_split_is_near_its_weights_over_ten_thousand_orders(weights: dict[str, int], seed: int) -> None:
    drawn = Counter(share_out(f"ord_{seed}_{number}", weights)[0] for number in range(10_000))
    for processor, weight in weights.items():
        expected = 10_000 * weight / sum(weights.values())
        assert abs(drawn[processor] - expected) <= 250  # five standard deviations of a half


def test_who_drops_out_of_a_split_hands_on_only_its_own_orders() -> None:
    weights = {"a": 50, "b": 30, "c": 20}
    heirs: Counter[str] = Counter()
    for number in range(10_000):
        drawn = share_out(f"ord_{number}", weights)
        without_a = [processor for processor in drawn if processor != "a"]
        if drawn[0] == "a":
            heirs[without_a[0]] += 1
        else:
            assert without_a[0] == drawn[0]
    assert abs(heirs["b"] * 2 - heirs["c"] * 3) < 1_000  # by their weights, 30 to 20


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"conditions": Conditions(("USD",), amount_min_minor=2, amount_max_minor=1)}, "conditions.amountMax"),
        ({"conditions": Conditions(amount_min_minor=1)}, "conditions.currencies"),
        ({"conditions": Conditions(amount_max_minor=1)}, "conditions.currencies"),
        ({"processors": ()}, "processors"),
        ({"processors": ("stripe", "paypal")}, "processors.paypal"),
        ({"processors": ("stripe", "stripe")}, "processors"),
        ({"processors": ("sandbox",)}, "processors"),
        ({"processors": tuple(f"p{n}" for n in range(MAX_TARGETS + 1))}, "processors"),
        ({"weights": (0,)}, "split.stripe"),
        ({"weights": (-1,)}, "split.stripe"),
        ({"weights": (MAX_WEIGHT + 1,)}, "split.stripe"),
        ({"processors": ("sandbox",), "weights": (1,)}, "split"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(LoopError) as refused:
        require_sound(rule(**changes), installed=INSTALLED, configured=("stripe", "razorpay"))
    assert refused.value.code == "invalid_rule"
    assert field in {name for name, _ in refused.value.details}


def test_a_sound_rule_is_let_be() -> None:
    narrow = Conditions(("USD",), amount_min_minor=5, amount_max_minor=5)
    for sound in (rule(), rule(conditions=narrow), rule(processors=("sandbox", "stripe"), weights=(1, MAX_WEIGHT))):
        require_sound(sound, installed=INSTALLED, configured=("stripe",))


COVERED: list[tuple[Conditions, Conditions]] = [
    (Conditions(), Conditions()),
    (Conditions(), Conditions(("USD",), brands=("visa",), metadata={"a": 1})),
    (Conditions(("USD", "EUR")), Conditions(("EUR",), countries=("DE",))),
    (Conditions(("USD",), amount_min_minor=10), Conditions(("USD",), amount_min_minor=10, amount_max_minor=20)),
    (Conditions(("USD",), amount_max_minor=20), Conditions(("USD",), amount_min_minor=10, amount_max_minor=20)),
    (Conditions(metadata={"a": 1}), Conditions(metadata={"a": 1, "b": "x"})),
]
NOT_COVERED: list[tuple[Conditions, Conditions]] = [
    (Conditions(("USD",)), Conditions()),
    (Conditions(("USD",)), Conditions(("USD", "EUR"))),
    (Conditions(("USD",), amount_min_minor=10), Conditions(("USD",))),
    (Conditions(("USD",), amount_max_minor=10), Conditions(("USD",), amount_max_minor=11)),
    (Conditions(("USD",), amount_max_minor=10), Conditions(("USD",))),
    (Conditions(metadata={"a": 1}), Conditions(metadata={"a": True})),
    (Conditions(payment_methods=("upi",)), Conditions(payment_methods=("card",))),
]


@pytest.mark.parametrize(("first", "second"), COVERED)
def test_a_rule_that_is_never_reached_is_named(first: Conditions, second: Conditions) -> None:
    before, after = rule("rul_1", 1, conditions=first), rule("rul_2", 2, conditions=second)
    said = "will never be reached: The rule 'RUL_1' (rul_1) comes first and matches all that it does."
    expected = [f"The rule 'RUL_2' (rul_2) {said}"]
    for saved in (before, after):
        assert warnings_about(saved, [after, before], configured=["stripe"]) == expected
    disabled = replace(before, is_enabled=False)
    for saved in (disabled, after):
        assert warnings_about(saved, [disabled, after], configured=["stripe"]) == []


@pytest.mark.parametrize(("first", "second"), NOT_COVERED)
def test_a_rule_that_may_be_reached_is_not(first: Conditions, second: Conditions) -> None:
    rules = [rule("rul_1", 1, conditions=first), rule("rul_2", 2, conditions=second)]
    assert [warnings_about(each, rules, configured=["stripe"]) for each in rules] == [[], []]


def test_warnings_are_about_the_rule_that_was_saved() -> None:
    rules = [rule("rul_1", 1), rule("rul_2", 2), rule("rul_3", 3, conditions=Conditions(("USD",)))]
    assert [("rul_2" in w, "rul_3" in w) for w in warnings_about(rules[1], rules, configured=["stripe"])] == [
        (True, False)
    ]
    assert len(warnings_about(rules[0], rules, configured=["stripe"])) == 2


def test_a_processor_that_is_not_configured_is_named() -> None:
    partly = rule(processors=("stripe", "razorpay"))
    assert warnings_about(partly, [partly], configured=["stripe"]) == [
        "razorpay is not configured; the rule passes it over."
    ]


_LISTS = st.lists(st.sampled_from(["A", "B", "C"]), max_size=2, unique=True).map(tuple)
_BOUNDS = st.none() | st.integers(1, 4)
_CONDITIONS = st.builds(
    Conditions,
    currencies=_LISTS,
    amount_min_minor=_BOUNDS,
    amount_max_minor=_BOUNDS,
    brands=_LISTS,
    metadata=st.dictionaries(st.sampled_from("xy"), st.sampled_from([1, True, "1"]), max_size=2),
)
_PAYMENTS = st.builds(
    lambda currency, amount, brand, metadata: PaymentTraits(
        "ord_1", Money(amount, currency), brand=brand, metadata=metadata
    ),
    st.sampled_from("ABC"),
    st.integers(1, 5),
    st.none() | st.sampled_from("ABC"),
    st.dictionaries(st.sampled_from("xyz"), st.sampled_from([1, True, "1"])),
)


@given(_CONDITIONS, _CONDITIONS, _PAYMENTS)
def test_what_covers_others_matches_whatever_they_match(
    first: Conditions, second: Conditions, made: PaymentTraits
) -> None:
    if first.cover(second) and second.match(made):
        assert first.match(made)


def test_tokens_tie_a_payment_only_when_nothing_else_is_there() -> None:
    assert tied_to(None, {}) is None
    assert tied_to("tok_1", {"stripe": "pm_1"}) is None
    assert tied_to(None, {"stripe": "pm_1", "razorpay": "token_1"}) == frozenset({"stripe", "razorpay"})
