"""Routing: who is left out and why, then the matching rule, the currency's default, and the merchant's priorities."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.errors import LoopError
from loop.domain.money import Money
from loop.domain.routing import Abilities, Candidate, Obstacle, RoutingDecision, assess, explain, route
from loop.domain.routing_rules import Conditions, PaymentTraits, Rule


def candidate(processor: str, *, is_enabled: bool = True, priority: int = 1, **changes: object) -> Candidate:
    usual = Candidate(f"pcf_{processor}", processor, is_enabled, priority)
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


def payment(currency: str = "USD", amount_minor: int = 1_000, **changes: object) -> PaymentTraits:
    return replace(PaymentTraits("ord_1", Money(amount_minor, currency)), **changes)  # type: ignore[arg-type] # any field


def rule(*processors: str, **changes: object) -> Rule:
    usual = Rule("rul_1", "First", 1, is_enabled=True, conditions=Conditions(), processors=processors)
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


STRIPE, RAZORPAY, SANDBOX = candidate("stripe"), candidate("razorpay"), candidate("sandbox")
ALL = (STRIPE, RAZORPAY, SANDBOX)


def decided(currency: str, candidates: Sequence[Candidate], *rules: Rule, forced: str | None = None) -> RoutingDecision:
    return route(payment(currency), candidates, rules=rules, forced_processor=forced)


def chosen(currency: str, *candidates: Candidate) -> str:
    return decided(currency, candidates).candidate.processor


def order_of(decision: RoutingDecision) -> list[str]:
    return [each.processor for each in decision.candidates]


@pytest.mark.parametrize(
    ("currency", "processor"),
    [("INR", "razorpay"), ("USD", "stripe"), ("EUR", "stripe"), ("GBP", "stripe"), ("JPY", "stripe")],
)
def test_each_currency_has_its_default(currency: str, processor: str) -> None:
    decision = decided(currency, ALL)
    assert decision.candidate.processor == processor
    assert decision.reasons == (f"{processor} is the default for {currency}",)


def test_the_default_goes_before_priority() -> None:
    assert chosen("USD", candidate("sandbox", priority=1), candidate("stripe", priority=99)) == "stripe"


def test_without_the_default_the_first_priority_takes_it() -> None:
    candidates = (candidate("sandbox", priority=5), candidate("adyen", priority=2), candidate("worldpay", priority=2))
    decision = decided("USD", candidates)
    assert decision.candidate.processor == "adyen"
    assert decision.reasons == (
        "stripe, the default for USD, is not available",
        "adyen: it has the first priority (2)",
    )


def test_the_only_processor_takes_what_it_can() -> None:
    decision = decided("INR", [STRIPE])
    assert decision.candidate is STRIPE
    assert decision.reasons[-1] == "stripe: it is the only one"


def test_a_disabled_default_is_left_out_and_named() -> None:
    decision = decided("USD", [candidate("stripe", is_enabled=False), SANDBOX])
    assert decision.candidate is SANDBOX
    assert decision.reasons[0] == "stripe left out: disabled"


def test_the_forced_processor_is_taken_whatever_the_currency() -> None:
    decision = decided("INR", ALL, forced="sandbox")
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
        decided("USD", candidates, forced=forced)
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
            decision = decided(currency, candidates)
        except LoopError as error:
            return error.code
        assert decision.candidate.is_enabled
        return decision.candidate.processor

    assert outcome(lists[0]) == outcome(lists[1])


OBSTACLES: list[tuple[Obstacle, Candidate, PaymentTraits, str]] = [
    (Obstacle.DISABLED, candidate("stripe", is_enabled=False), payment(), "disabled"),
    (Obstacle.NOT_INSTALLED, candidate("stripe", abilities=None), payment(), "it is not installed"),
    (
        Obstacle.MODE,
        candidate("stripe", is_test_mode=False, abilities=Abilities(is_test_only=True)),
        payment(is_test=False),
        "it works in test mode only, and the account is live",
    ),
    (
        Obstacle.MODE,
        candidate("stripe", is_test_mode=False),
        payment(),
        "it is a live account, and this is a test order",
    ),
    (
        Obstacle.MODE,
        candidate("stripe"),
        payment(is_test=False),
        "it is a test account, and this is a live order",
    ),
    (
        Obstacle.CURRENCY,
        candidate("stripe", abilities=Abilities(currencies=frozenset({"INR"}))),
        payment("USD"),
        "it does not take USD",
    ),
    (
        Obstacle.PAYMENT_METHOD,
        candidate("stripe", abilities=Abilities(payment_methods=frozenset({"card"}))),
        payment(payment_method="upi"),
        "it does not take upi payments",
    ),
    (
        Obstacle.MINIMUM,
        candidate("stripe", abilities=Abilities(minimums={"JPY": 50})),
        payment("JPY", 49),
        "49 JPY is below its minimum of 50 JPY",
    ),
    (Obstacle.NO_TOKEN, STRIPE, payment(tokens_for=frozenset({"razorpay"})), "no token for it was given"),
    (
        Obstacle.CAPABILITY,
        candidate("stripe", abilities=Abilities(can_capture_manually=False)),
        payment(is_manual_capture=True),
        "it cannot hold money for a later capture",
    ),
    (
        Obstacle.CIRCUIT_OPEN,
        candidate("stripe", is_circuit_open=True),
        payment(),
        "its circuit is open: too many of its latest calls were not answered",
    ),
    (Obstacle.TRIED, candidate("stripe", is_tried=True), payment(), "it was tried for this order already"),
]


def test_every_obstacle_can_be_met_and_is_in_the_guide() -> None:
    assert {obstacle for obstacle, *_ in OBSTACLES} == set(Obstacle)
    guide = (Path(__file__).parents[2] / "docs/guides/routing.md").read_text("utf-8")
    assert [code for code in Obstacle if f"| `{code}` |" not in guide] == []


@pytest.mark.parametrize(("obstacle", "hindered", "asked", "explanation"), OBSTACLES, ids=[o[0] for o in OBSTACLES])
def test_who_cannot_take_it_is_left_out_with_the_reason(
    obstacle: Obstacle, hindered: Candidate, asked: PaymentTraits, explanation: str
) -> None:
    assert assess(hindered, asked).obstacles == {obstacle: explanation}
    abilities = Abilities(payment_methods=frozenset({"card", "upi"}))
    able = replace(RAZORPAY, is_test_mode=asked.is_test, abilities=abilities)
    decision = route(asked, [hindered, able])
    assert order_of(decision) == ["razorpay"]
    assert decision.reasons[0] == f"stripe left out: {explanation}"
    with pytest.raises(LoopError) as refused:
        route(asked, [hindered], forced_processor="stripe")
    if obstacle is Obstacle.DISABLED:
        assert refused.value.code == "no_processor"
    else:
        assert refused.value.code == "no_eligible_processor"
        assert refused.value.details == (("stripe", explanation),)


@pytest.mark.parametrize(
    ("able", "asked"),
    [
        (Abilities(currencies=frozenset({"USD"})), payment("USD")),
        (Abilities(minimums={"JPY": 50}), payment("JPY", 50)),
        (Abilities(minimums={"JPY": 50}), payment("USD", 1)),
        (Abilities(is_test_only=True), payment()),
        (Abilities(can_capture_manually=False), payment()),
        (Abilities(), payment(tokens_for=frozenset({"stripe", "razorpay"}))),
    ],
)
def test_what_is_just_within_reach_is_no_obstacle(able: Abilities, asked: PaymentTraits) -> None:
    assert assess(candidate("stripe", abilities=able), asked).obstacles == {}


def test_all_that_stands_against_anybody_is_named() -> None:
    inr_only = candidate("stripe", abilities=Abilities(currencies=frozenset({"INR"})), is_circuit_open=True)
    disabled = candidate("razorpay", is_enabled=False)
    with pytest.raises(LoopError) as refused:
        decided("USD", [inr_only, disabled])
    assert refused.value.code == "no_eligible_processor"
    assert refused.value.details == (
        ("stripe", "it does not take USD"),
        ("stripe", "its circuit is open: too many of its latest calls were not answered"),
    )
    for _, explanation in refused.value.details:
        assert explanation in refused.value.message
    assert explain(payment(), [inr_only, disabled]).candidates == ()


def test_of_two_accounts_at_one_processor_the_one_of_the_mode_takes_the_payment() -> None:
    test, live = candidate("stripe"), replace(candidate("stripe"), config_id="pcf_live", is_test_mode=False)
    for asked, taking in ((payment(), test), (payment(is_test=False), live)):
        for candidates in ([test, live], [live, test]):
            assert explain(asked, candidates).candidates == (taking,)


def test_an_account_of_the_other_mode_is_named_only_where_there_is_no_other() -> None:
    no_usd = candidate("razorpay", abilities=Abilities(currencies=frozenset({"INR"})))
    live = candidate("stripe", is_test_mode=False)
    with pytest.raises(LoopError) as refused:
        route(payment(), [no_usd, live])
    assert refused.value.details == (("razorpay", "it does not take USD"),)
    with pytest.raises(LoopError) as refused:
        route(payment(), [live], forced_processor="stripe")
    assert refused.value.message.endswith("stripe: it is a live account, and this is a test order.")


def test_a_matching_rule_goes_before_the_default_and_the_rest_follows() -> None:
    adyen = candidate("adyen", priority=2)
    decision = decided("USD", [*ALL, adyen], rule("sandbox", "razorpay"))
    assert order_of(decision) == ["sandbox", "razorpay", "stripe", "adyen"]
    assert decision.reasons == ("rule 'First' (rul_1) chose sandbox, then razorpay",)
    assert decision.rule == rule("sandbox", "razorpay")


def test_of_a_rule_s_processors_the_eligible_ones_are_taken_in_order() -> None:
    shut = candidate("sandbox", is_circuit_open=True)
    decision = decided("USD", [STRIPE, RAZORPAY, shut], rule("adyen", "sandbox", "razorpay"))
    assert order_of(decision) == ["razorpay", "stripe"]
    assert decision.reasons == (
        "sandbox left out: its circuit is open: too many of its latest calls were not answered",
        "adyen left out: not configured",
        "rule 'First' (rul_1) chose razorpay",
    )


def test_a_rule_that_leads_to_nobody_leaves_it_to_the_default() -> None:
    decision = decided("USD", [STRIPE, SANDBOX], rule("razorpay"), rule("sandbox", id="rul_2", priority=2))
    assert order_of(decision) == ["stripe", "sandbox"]
    assert decision.reasons == (
        "razorpay left out: not configured",
        "rule 'First' (rul_1) matches, but none of its processors can take the payment",
        "stripe is the default for USD",
    )


def test_a_split_says_what_it_splits_and_keeps_the_others_for_later() -> None:
    decision = decided("USD", ALL, rule("razorpay", "sandbox", weights=(70, 30)))
    assert set(order_of(decision)[:2]) == {"razorpay", "sandbox"}
    assert order_of(decision)[2] == "stripe"
    assert decision.reasons == (
        "rule 'First' (rul_1), which splits razorpay 70, sandbox 30, chose " + ", then ".join(order_of(decision)[:2]),
    )


def test_a_forced_processor_leaves_no_other_choice() -> None:
    decision = decided("USD", ALL, rule("razorpay"), forced="sandbox")
    assert (order_of(decision), decision.rule) == (["sandbox"], None)


@given(
    st.lists(
        st.builds(
            candidate,
            st.sampled_from(["stripe", "razorpay", "sandbox", "adyen"]),
            is_enabled=st.booleans(),
            priority=st.integers(1, 3),
            is_circuit_open=st.booleans(),
        ),
        unique_by=lambda each: each.processor,
    ),
    st.lists(
        st.builds(
            lambda number, names, currency: rule(
                *names, id=f"rul_{number}", priority=number % 3, conditions=Conditions(currencies=(currency,))
            ),
            st.integers(1, 9),
            st.lists(st.sampled_from(["stripe", "razorpay", "sandbox"]), min_size=1, max_size=3, unique=True),
            st.sampled_from(["USD", "INR"]),
        ),
        unique_by=lambda each: each.id,
        max_size=5,
    ),
)
def test_one_question_has_one_answer_and_everybody_is_in_it_once(
    candidates: list[Candidate], rules: list[Rule]
) -> None:
    decision = explain(payment(), candidates, rules=rules)
    assert explain(payment(), candidates[::-1], rules=rules[::-1]) == decision
    eligible = {each.processor for each in candidates if each.is_enabled and not each.is_circuit_open}
    assert sorted(order_of(decision)) == sorted(eligible)
    assert len(decision.assessments) == len(candidates)
