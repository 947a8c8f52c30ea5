"""Routing: choose who takes a payment, explain what would be chosen, and keep a merchant's rules."""

from dataclasses import dataclass, replace
from typing import Final

from loop.domain.attempts import Attempt
from loop.domain.audit import AuditAction
from loop.domain.errors import LoopError, invalid, not_found
from loop.domain.failover import may_go_elsewhere
from loop.domain.orders import Order
from loop.domain.routing import Abilities, Candidate, RoutingDecision, explain, route
from loop.domain.routing_rules import MAX_RULES, PaymentTraits, Rule, require_sound, warnings_about
from loop.storage import attempts, merchants, processor_configs, routing
from loop.storage.database import Reader, Session
from loop.storage.processor_configs import ProcessorConfig
from loop.storage.routing import StoredRule
from loop.telemetry import get_logger
from loop.workflows import audit, counts
from loop.workflows.attempts import Snapshot, has_token, tokens_of, traits_of
from loop.workflows.context import Context

log = get_logger(__name__)

AUDITED: Final = ("name", "priority", "is_enabled", "conditions", "processors", "weights")
"""The fields of a rule that the audit log holds."""


@dataclass(frozen=True, slots=True)
class SavedRule:
    """A rule as it was saved, with what is odd about it."""

    stored: StoredRule
    warnings: tuple[str, ...]


async def choose(
    context: Context, reader: Reader, merchant_id: str, payment: PaymentTraits, *, forced_processor: str | None
) -> RoutingDecision:
    """Return who is to take a new payment; raises what `domain.routing.route` raises."""
    candidates = await candidates_of(context, reader, merchant_id)
    stored = [] if forced_processor is not None else await routing.of_merchant(reader, merchant_id)
    rules = [each.rule for each in stored]
    try:
        return route(payment, candidates, rules=rules, forced_processor=forced_processor)
    except LoopError:
        counts.refused(is_test=payment.is_test)
        raise


async def choose_next(context: Context, reader: Reader, order: Order, *, after: Attempt) -> RoutingDecision | None:
    """Return who takes an order that its latest attempt did not pay; None when nobody is left who may.

    Each processor account is tried once, and only with a token of its own. A processor that was asked for by name
    leaves no other choice.
    """
    if after.request.get("forcedProcessor") is not None:
        return None
    tokens = tokens_of(after.request)
    payment = traits_of(order, after.request)
    if has_token(after.request):
        payment = replace(payment, tokens_for=frozenset(tokens))
    tried = {each.processor_config_id for each, _ in await attempts.of_order(reader, order.merchant_id, order.id)}
    candidates = [
        replace(each, is_tried=each.config_id in tried)
        for each in await candidates_of(context, reader, order.merchant_id)
    ]
    rules = [each.rule for each in await routing.of_merchant(reader, order.merchant_id)]
    decision = explain(payment, candidates, rules=rules)
    return decision if decision.candidates else None


async def choose_again(
    context: Context, reader: Reader, order: Order, *, failed: Attempt, snapshot: Snapshot
) -> RoutingDecision:
    """Return who takes an order whose customer pays again in the browser; raises what `choose` raises.

    That is the next processor where the latest attempt was declined so that another may decide otherwise and nothing
    can come of it any more; else whoever took it before is as good as any.
    """
    if not has_token(snapshot) and _may_go_elsewhere(context, failed):
        following = await choose_next(context, reader, order, after=replace(failed, request=snapshot))
        if following is not None:
            reason = f"after {failed.processor} failed: {failed.error_code}"
            return replace(following, reasons=(reason, *following.reasons))
    forced = snapshot.get("forcedProcessor")
    return await choose(
        context,
        reader,
        order.merchant_id,
        traits_of(order, snapshot),
        forced_processor=None if forced is None else str(forced),
    )


async def has_next(context: Context, reader: Reader, order: Order, *, after: Attempt) -> bool:
    """Tell whether a customer whose latest try was declined as `after` says may try at another processor."""
    return _may_go_elsewhere(context, after) and await choose_next(context, reader, order, after=after) is not None


def _may_go_elsewhere(context: Context, failed: Attempt) -> bool:
    try:
        finality = context.processors.get(failed.processor).capabilities.decline_finality
    except LoopError:  # its plug-in was removed, and with it whoever could say
        return False
    return may_go_elsewhere(failed.decline_class, finality)


async def try_out(
    context: Context, merchant_id: str, payment: PaymentTraits, *, forced_processor: str | None
) -> RoutingDecision:
    """Return what would be chosen for a payment, perhaps nobody, and why; nothing is charged or changed."""
    async with context.database.reading() as reader:
        candidates = await candidates_of(context, reader, merchant_id)
        rules = [each.rule for each in await routing.of_merchant(reader, merchant_id)]
    return explain(payment, candidates, rules=rules, forced_processor=forced_processor)


async def candidates_of(context: Context, reader: Reader, merchant_id: str) -> list[Candidate]:
    """Return a merchant's processor accounts as routing looks at them."""
    configs = await processor_configs.of_merchant(reader, merchant_id)
    return [_candidate(context, config) for config in configs]


def _candidate(context: Context, config: ProcessorConfig) -> Candidate:
    return Candidate(
        config_id=config.id,
        processor=config.processor,
        is_enabled=config.is_enabled,
        priority=config.priority,
        is_test_mode=config.is_test_mode,
        is_circuit_open=context.breakers.is_shut(config.id, context.now()),
        abilities=_abilities(context, config.processor),
    )


def _abilities(context: Context, processor: str) -> Abilities | None:
    try:
        capabilities = context.processors.get(processor).capabilities
    except LoopError:  # its plug-in was removed
        return None
    return Abilities(
        currencies=capabilities.currencies,
        payment_methods=capabilities.payment_methods,
        minimums=capabilities.minimums,
        can_capture_manually=capabilities.can_capture_manually,
        is_test_only=capabilities.is_test_only,
    )


async def list_rules(context: Context, merchant_id: str) -> list[StoredRule]:
    """Return a merchant's rules in the order in which they are tried."""
    async with context.database.reading() as reader:
        return await routing.of_merchant(reader, merchant_id)


async def get_rule(context: Context, merchant_id: str, rule_id: str) -> StoredRule:
    """Return a merchant's rule; raises `not_found`."""
    async with context.database.reading() as reader:
        found = await routing.get(reader, merchant_id, rule_id)
    if found is None:
        raise no_such_rule()
    return found


async def save_rule(context: Context, merchant_id: str, rule: Rule, *, is_new: bool) -> SavedRule:
    """Save a new rule, or the new content of the one with that id; raises `invalid_rule`.

    A new one that is there already, since the run that saved it died before it could say so, is saved again. Raises
    `too_many_rules` for a new rule and `not_found` for one that is not.
    """
    now = context.now()
    async with context.database.transaction() as session:
        stored_rules, configured = await locked(session, merchant_id)
        before = next((each for each in stored_rules if each.rule.id == rule.id), None)
        if before is not None:
            stored = replace(before, rule=rule, updated_at=now)
        elif not is_new:
            raise no_such_rule()
        elif len(stored_rules) >= MAX_RULES:
            raise invalid("too_many_rules", f"A merchant may have {MAX_RULES} rules; remove one first.")
        else:
            stored = StoredRule(rule, merchant_id, created_at=now, updated_at=now)
        require_sound(rule, installed=context.processors.names(), configured=configured)
        if before is None:
            await routing.insert_rule(session, stored)
        else:
            await routing.replace_rule(session, stored)
        await record_saved(context, session, before, stored)
    log.info("routing_rule.saved", merchant_id=merchant_id, rule_id=rule.id)
    rules = [rule, *(each.rule for each in stored_rules if each is not before)]
    return SavedRule(stored, tuple(warnings_about(rule, rules, configured=configured)))


async def record_saved(context: Context, session: Session, before: StoredRule | None, stored: StoredRule) -> None:
    """Record that a rule was made or changed, as the last statement of what does it."""
    rule, merchant_id = stored.rule, stored.merchant_id
    if before is None:
        action, after = AuditAction.ROUTING_RULE_CREATED, audit.facts_of(rule, AUDITED)
        await audit.record(context, session, action, rule.id, merchant_id=merchant_id, after=after)
        return
    was, now_is = audit.changes(before.rule, rule, names=AUDITED)
    if now_is:
        action = AuditAction.ROUTING_RULE_CHANGED
        await audit.record(context, session, action, rule.id, merchant_id=merchant_id, before=was, after=now_is)


async def remove_rule(context: Context, merchant_id: str, rule_id: str) -> None:
    """Remove a rule; raises `not_found`."""
    async with context.database.transaction() as session:
        await merchants.lock(session, merchant_id)
        before = await routing.get(session, merchant_id, rule_id)
        if before is None or not await routing.remove(session, merchant_id, rule_id):
            raise no_such_rule()
        action, was = AuditAction.ROUTING_RULE_REMOVED, audit.facts_of(before.rule, AUDITED)
        await audit.record(context, session, action, rule_id, merchant_id=merchant_id, before=was)
    log.info("routing_rule.removed", merchant_id=merchant_id, rule_id=rule_id)


async def locked(session: Session, merchant_id: str) -> tuple[list[StoredRule], frozenset[str]]:
    """Return a merchant's rules, which nobody else changes meanwhile, and the processors they can send orders to."""
    if not await merchants.lock(session, merchant_id):
        raise not_found("merchant")
    configs = await processor_configs.of_merchant(session, merchant_id)
    return await routing.of_merchant(session, merchant_id), frozenset(config.processor for config in configs)


def no_such_rule() -> LoopError:
    """Return the error for a rule that the merchant does not have."""
    return not_found("routing rule")
