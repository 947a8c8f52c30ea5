"""Routing over a database: rules kept and obeyed, tokens of several processors, and circuits that open and close."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import AttemptStatus, NotSent, Unknown
from loop.domain.breakers import FIRST_PAUSE, MIN_CALLS
from loop.domain.errors import LoopError
from loop.domain.ids import PREFIX_ROUTING_RULE
from loop.domain.money import Money
from loop.domain.orders import OrderStatus
from loop.domain.routing_rules import MAX_RULES, Conditions, PaymentTraits, Rule
from loop.processors.base import AuthorizeRequest
from loop.storage import processor_configs as config_rows
from loop.workflows import processor_configs, routing, timeline
from loop.workflows.processor_configs import ConfigChange
from loop.workflows.routing import SavedRule
from tests.builders import Shop, open_shop, work_off

SILENCE = Unknown("no answer")
EVERYTHING = Conditions(
    currencies=("EUR", "USD"),
    amount_min_minor=1,
    amount_max_minor=10**12,
    brands=("visa",),
    countries=("DE",),
    payment_methods=("card",),
    metadata={"text": "é", "whole": 3, "part": 0.5, "yes": True},
)


def new_rule(shop: Shop, *processors: str, **changes: object) -> Rule:
    usual = Rule(
        shop.context.new_id(PREFIX_ROUTING_RULE), "A rule", 1, is_enabled=True, conditions=Conditions(),
        processors=processors or ("sandbox",),
    )  # fmt: skip
    return replace(usual, **changes)  # type: ignore[arg-type] # any field


async def save(shop: Shop, rule: Rule, *, is_new: bool = True) -> SavedRule:
    return await routing.save_rule(shop.context, shop.merchant_id, rule, is_new=is_new)


async def use_stripe(shop: Shop) -> None:
    """Give the shop a Stripe account, the default for its euros; nothing in here calls it."""
    await processor_configs.put(
        shop.context, shop.merchant_id, "stripe", credentials={"secretKey": "sk_test_1"}, change=ConfigChange()
    )


async def refused(code: str, work: object) -> LoopError:
    with pytest.raises(LoopError) as error:
        await work  # type: ignore[misc]
    assert error.value.code == code
    return error.value


async def test_a_rule_is_kept_as_it_was_saved(shop: Shop) -> None:
    rule = new_rule(shop, conditions=EVERYTHING, weights=(7,), priority=3)
    saved = await save(shop, rule)
    assert saved.warnings == ()
    assert await routing.get_rule(shop.context, shop.merchant_id, rule.id) == saved.stored
    assert await routing.list_rules(shop.context, shop.merchant_id) == [saved.stored]
    changed = replace(rule, name="Another", conditions=Conditions(), weights=(), is_enabled=False)
    updated = await save(shop, changed, is_new=False)
    assert updated.stored.rule == changed
    assert updated.stored.created_at == saved.stored.created_at < updated.stored.updated_at
    assert await routing.list_rules(shop.context, shop.merchant_id) == [updated.stored]
    await routing.remove_rule(shop.context, shop.merchant_id, rule.id)
    assert await routing.list_rules(shop.context, shop.merchant_id) == []


async def test_rules_come_in_the_order_in_which_they_are_tried(shop: Shop) -> None:
    made = []
    for priority in (2, 1, 2):
        shop.clock.forward(seconds=1)
        made.append((await save(shop, new_rule(shop, priority=priority))).stored.rule)
    listed = await routing.list_rules(shop.context, shop.merchant_id)
    assert [each.rule.id for each in listed] == [made[1].id, made[0].id, made[2].id]


async def test_another_merchant_s_rules_are_not_there(shop: Shop) -> None:
    saved = await save(shop, new_rule(shop))
    other = await open_shop(shop.context, shop.clock, number=2)
    rule_id = saved.stored.rule.id
    await refused("not_found", routing.get_rule(shop.context, other.merchant_id, rule_id))
    await refused("not_found", routing.remove_rule(shop.context, other.merchant_id, rule_id))
    await refused("not_found", save(other, replace(saved.stored.rule, name="Mine"), is_new=False))
    assert await routing.list_rules(shop.context, other.merchant_id) == []
    assert await routing.list_rules(shop.context, shop.merchant_id) == [saved.stored]
    await refused("not_found", routing.save_rule(shop.context, "mer_nobody", new_rule(shop), is_new=True))


async def test_a_rule_that_cannot_work_is_refused_and_an_odd_one_warned_of(shop: Shop) -> None:
    await refused("invalid_rule", save(shop, new_rule(shop, "stripe")))
    await refused("invalid_rule", save(shop, new_rule(shop, "paypal", "sandbox")))
    first = await save(shop, new_rule(shop, "sandbox", "stripe"))
    assert first.warnings == ("stripe is not configured; the rule passes it over.",)
    (warning,) = (await save(shop, new_rule(shop, priority=2))).warnings
    assert "will never be reached" in warning
    assert first.stored.rule.id in warning
    await refused("invalid_rule", save(shop, replace(first.stored.rule, processors=("paypal",)), is_new=False))
    assert (await routing.get_rule(shop.context, shop.merchant_id, first.stored.rule.id)) == first.stored


async def test_a_rule_saved_again_after_a_crash_is_one_rule(shop: Shop) -> None:
    rule = new_rule(shop)
    first, again = await save(shop, rule), await save(shop, rule)
    assert again.stored.rule == first.stored.rule
    assert len(await routing.list_rules(shop.context, shop.merchant_id)) == 1


async def test_a_merchant_has_a_hundred_rules_at_most_however_many_come_at_once(shop: Shop) -> None:
    saving = [save(shop, new_rule(shop)) for _ in range(MAX_RULES + 3)]
    outcomes = await asyncio.gather(*saving, return_exceptions=True)
    refusals = [each for each in outcomes if isinstance(each, LoopError)]
    assert [each.code for each in refusals] == ["too_many_rules"] * 3
    assert len(await routing.list_rules(shop.context, shop.merchant_id)) == MAX_RULES
    (kept, *_) = await routing.list_rules(shop.context, shop.merchant_id)
    await save(shop, replace(kept.rule, name="Changed"), is_new=False)


async def test_a_payment_goes_where_the_rule_says_and_the_timeline_says_why(shop: Shop) -> None:
    await use_stripe(shop)
    rule = new_rule(shop, conditions=Conditions(("EUR",), metadata={"plan": "pro"}))
    await save(shop, rule)
    order = await shop.order(metadata={"plan": "pro"})
    await shop.pay(order.id)
    _, entries = await timeline.of_order(shop.context, shop.merchant_id, order.id)
    (attempt,) = (entry for entry in entries if entry.kind == "attempt")
    assert attempt.details["processor"] == "sandbox"
    assert attempt.details["routing"] == [f"rule 'A rule' ({rule.id}) chose sandbox"]


async def test_conditions_ask_about_the_card_and_else_the_order(shop: Shop) -> None:
    await use_stripe(shop)
    await save(shop, new_rule(shop, conditions=Conditions(brands=("rupay",), countries=("IN",))))
    order = await shop.order(country="IN")
    await refused("no_eligible_processor", shop.pay(order.id, payment_method="upi", processor="stripe"))
    paid = await shop.pay(order.id, brand="rupay")
    assert paid.order.processor == "sandbox"
    explained = await routing.try_out(
        shop.context,
        shop.merchant_id,
        PaymentTraits("ord_x", Money(1_000, "EUR"), brand="rupay", country="US"),
        forced_processor=None,
    )
    assert [each.processor for each in explained.candidates] == ["stripe", "sandbox"]
    assert explained.rule is None


async def test_a_split_keeps_an_order_where_it_was(shop: Shop) -> None:
    await use_stripe(shop)
    await save(shop, new_rule(shop, "sandbox", "stripe", weights=(1, 1)))
    orders = [await shop.order() for _ in range(20)]
    places: list[list[str]] = []
    for _ in range(2):
        decisions = [
            await routing.try_out(
                shop.context, shop.merchant_id, PaymentTraits(order.id, order.amount), forced_processor=None
            )
            for order in orders
        ]
        places.append([decision.candidate.processor for decision in decisions])
    assert places[0] == places[1]
    assert set(places[0]) == {"sandbox", "stripe"}
    mine = next(order for order, place in zip(orders, places[0], strict=True) if place == "sandbox")
    await shop.pay(mine.id, "tok_decline_declined")
    await shop.pay(mine.id, is_retry=True)
    assert [tried.processor for tried in await shop.attempts(mine.id)] == ["sandbox", "sandbox"]


async def test_of_several_tokens_each_processor_gets_its_own_and_all_are_kept(shop: Shop) -> None:
    await use_stripe(shop)
    order = await shop.order()
    tokens = {"sandbox": "tok_approve", "razorpay": "token_1"}
    paid = await shop.pay(order.id, None, tokens=tokens, brand="visa", country="DE")
    assert (paid.order.status, paid.order.processor) == (OrderStatus.CAPTURED, "sandbox")
    (request, _), *_ = shop.sandbox.called("authorize")
    assert isinstance(request, AuthorizeRequest)
    assert request.token == "tok_approve"
    assert paid.attempt is not None
    kept = {name: paid.attempt.request[name] for name in ("tokens", "token", "brand", "country")}
    assert kept == {"tokens": tokens, "token": None, "brand": "visa", "country": "DE"}
    _, entries = await timeline.of_order(shop.context, shop.merchant_id, order.id)
    assert "stripe left out: no token for it was given" in str(entries)
    assert "token_1" not in str(entries)


async def test_a_processor_s_own_token_goes_before_the_one_for_anybody(shop: Shop) -> None:
    order = await shop.order()
    paid = await shop.pay(order.id, "tok_decline_declined", tokens={"sandbox": "tok_approve"})
    assert paid.order.status is OrderStatus.CAPTURED
    declined = await shop.pay((await shop.order()).id, "tok_decline_declined", tokens={"stripe": "pm_1"})
    assert declined.order.last_error_code == "declined"


async def test_what_nobody_can_take_is_refused_and_stays_pending(shop: Shop) -> None:
    await use_stripe(shop)
    await processor_configs.update(shop.context, shop.merchant_id, "sandbox", change=ConfigChange(is_test_mode=False))
    order = await shop.order(49)
    error = await refused("no_eligible_processor", shop.pay(order.id))
    assert error.details == (("stripe", "0.49 EUR is below its minimum of 0.50 EUR"),)
    in_hand = await shop.now(order.id)
    assert (in_hand.order.status, in_hand.attempt) == (OrderStatus.PENDING, None)


async def test_a_plug_in_that_was_removed_hinders_nobody(shop: Shop) -> None:
    (sandbox,) = await processor_configs.list_all(shop.context, shop.merchant_id)
    gone = replace(sandbox, id="pcf_gone", processor="gone", priority=1)
    async with shop.context.database.transaction() as session:
        await config_rows.put(session, gone)
    assert (await shop.paid()).order.processor == "sandbox"
    order = await shop.order()
    error = await refused("no_eligible_processor", shop.pay(order.id, processor="gone"))
    assert error.details == (("gone", "it is not installed"),)


@pytest.mark.parametrize("answer", [SILENCE, NotSent("processor_unreachable", "Nobody was there.")])
async def test_too_many_calls_without_an_answer_open_the_circuit_until_a_probe_succeeds(
    shop: Shop, answer: Unknown | NotSent
) -> None:
    sent = 1 if answer is SILENCE else 2  # what was not sent is sent once more
    shop.next_answers("authorize", *[answer] * MIN_CALLS * sent)
    begun = [(await shop.paid()).order.id for _ in range(MIN_CALLS)]
    order = await shop.order()
    error = await refused("no_eligible_processor", shop.pay(order.id))
    assert error.details == (("sandbox", "its circuit is open: too many of its latest calls were not answered"),)
    assert (await shop.now(order.id)).order.status is OrderStatus.PENDING
    if answer is SILENCE:  # what has begun goes on
        shop.clock.forward(seconds=3)
        await work_off(shop.context)
        assert {(await shop.now(each)).order.status for each in begun} == {OrderStatus.CAPTURED}
    shop.clock.at += FIRST_PAUSE
    shop.next_answers("authorize", SILENCE)
    probe = await shop.pay(order.id)
    assert probe.attempt is not None
    assert probe.attempt.status is AttemptStatus.UNKNOWN
    shop.clock.at += FIRST_PAUSE
    await refused("no_eligible_processor", shop.paid())  # the pause has doubled
    shop.clock.at += FIRST_PAUSE
    assert (await shop.paid()).order.status is OrderStatus.CAPTURED
    assert (await shop.paid()).order.status is OrderStatus.CAPTURED


async def test_while_a_probe_is_on_its_way_the_others_go_elsewhere(shop: Shop) -> None:
    shop.next_answers("authorize", *[SILENCE] * MIN_CALLS)
    for _ in range(MIN_CALLS):
        await shop.paid()
    shop.clock.at += FIRST_PAUSE + timedelta(seconds=1)
    orders = [await shop.order() for _ in range(5)]
    outcomes = await asyncio.gather(*(shop.pay(order.id) for order in orders), return_exceptions=True)
    refusals = [each for each in outcomes if isinstance(each, LoopError)]
    assert len(refusals) < len(outcomes)
    assert {each.code for each in refusals} <= {"no_eligible_processor"}
    assert (await shop.paid()).order.status is OrderStatus.CAPTURED


async def test_declines_open_no_circuit(shop: Shop) -> None:
    for _ in range(MIN_CALLS + 1):
        paid = await shop.paid("tok_decline_processor_error")
        assert paid.order.status is OrderStatus.FAILED
