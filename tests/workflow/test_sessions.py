"""Sign-in sessions: refresh tokens that are used once, lost answers forgiven for a moment, and sessions ended."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.audit import Actor, ActorKind
from loop.domain.errors import LoopError
from loop.storage import sessions as rows
from loop.workflows import merchants, retention, sessions, tokens
from loop.workflows.context import Context
from loop.workflows.merchants import NewMerchant, SignedIn
from loop.workflows.sessions import GRACE
from tests.builders import Clock

SHOP = NewMerchant("My shop", "me@example.com", "correct horse")
LATER = GRACE + timedelta(seconds=1)


async def log_in(context: Context, user_agent: str | None = None) -> SignedIn:
    return await merchants.login(
        context, email=SHOP.email, password=SHOP.password, address="203.0.113.9", user_agent=user_agent
    )


async def refused(refresh_token: str, context: Context) -> None:
    with pytest.raises(LoopError) as error:
        await merchants.refresh(context, refresh_token)
    assert error.value.code == "invalid_refresh_token"


def pair(signed_in: SignedIn) -> tuple[str, str]:
    return signed_in.access_token, signed_in.refresh_token


async def test_a_refresh_token_gets_the_next_pair(context: Context, clock: Clock) -> None:
    first = await merchants.register(context, SHOP)
    claims = tokens.verify(context, first.access_token)
    clock.forward(hours=1)
    second = await merchants.refresh(context, first.refresh_token)
    third = await merchants.refresh(context, second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert tokens.verify(context, third.access_token) == claims
    assert claims.merchant_id == first.profile.merchant.id


async def test_a_lost_answer_is_given_again_for_a_moment(context: Context, clock: Clock) -> None:
    first = await merchants.register(context, SHOP)
    second = await merchants.refresh(context, first.refresh_token)
    clock.forward(seconds=GRACE.total_seconds() - 1)
    assert pair(await merchants.refresh(context, first.refresh_token)) == pair(second)
    third = await merchants.refresh(context, second.refresh_token)
    assert pair(await merchants.refresh(context, second.refresh_token)) == pair(third)


async def test_a_used_token_shown_later_ends_its_session_and_no_other(context: Context, clock: Clock) -> None:
    first = await merchants.register(context, SHOP)
    elsewhere = await log_in(context)
    second = await merchants.refresh(context, first.refresh_token)
    clock.forward(seconds=LATER.total_seconds())
    await refused(first.refresh_token, context)
    await refused(second.refresh_token, context)
    await merchants.refresh(context, elsewhere.refresh_token)


async def test_a_used_token_whose_successor_was_used_ends_its_session_at_once(context: Context) -> None:
    first = await merchants.register(context, SHOP)
    second = await merchants.refresh(context, first.refresh_token)
    third = await merchants.refresh(context, second.refresh_token)
    await refused(first.refresh_token, context)
    await refused(third.refresh_token, context)


async def test_many_that_refresh_at_once_all_get_the_one_successor(context: Context, clock: Clock) -> None:
    first = await merchants.register(context, SHOP)
    clock.forward(hours=1)
    found = await asyncio.gather(*(merchants.refresh(context, first.refresh_token) for _ in range(8)))
    (shared,) = {each.refresh_token for each in found}
    assert {tokens.verify(context, each.access_token) for each in found} == {tokens.verify(context, first.access_token)}
    clock.forward(hours=1)
    await merchants.refresh(context, shared)


async def test_a_session_ends_by_time_and_by_signing_out(context: Context, clock: Clock) -> None:
    signed_in = await merchants.register(context, SHOP)
    successor = await merchants.refresh(context, signed_in.refresh_token)
    await merchants.logout(context, successor.refresh_token)
    await merchants.logout(context, "unknown")
    await refused(successor.refresh_token, context)
    await refused(signed_in.refresh_token, context)
    late = await log_in(context)
    clock.forward(seconds=context.settings.refresh_token_ttl_s)
    await refused(late.refresh_token, context)
    await refused("unknown", context)


async def test_a_signing_key_that_was_changed_ends_no_session(context: Context, clock: Clock) -> None:
    first = await merchants.register(context, SHOP)
    secret = type(context.settings.jwt_secret)("another 0123456789abcdef0123456789abcdef")
    changed = replace(context, settings=replace(context.settings, jwt_secret=secret))
    with pytest.raises(LoopError, match="invalid_token"):
        tokens.verify(changed, first.access_token)
    clock.forward(hours=1)
    second = await merchants.refresh(changed, first.refresh_token)
    assert tokens.verify(changed, second.access_token).merchant_id == first.profile.merchant.id


async def test_sessions_are_listed_with_where_they_are_and_ended_one_by_one(context: Context, clock: Clock) -> None:
    visitor = replace(context, actor=Actor(ActorKind.ANONYMOUS, address="198.51.100.7"))
    registered = await merchants.register(visitor, SHOP, user_agent="Firefox\x1b[31m" + "x" * 500)
    merchant_id = registered.profile.merchant.id
    clock.forward(hours=1)
    await log_in(context, "curl/8")
    clock.forward(hours=1)
    await merchants.refresh(visitor, registered.refresh_token, user_agent="Firefox 2")
    used_last, other = await sessions.list_live(context, merchant_id)
    assert (used_last.address, used_last.user_agent) == ("198.51.100.7", "Firefox 2")
    assert used_last.last_used_at - used_last.created_at > timedelta(hours=2)
    assert (other.address, other.user_agent) == ("203.0.113.9", "curl/8")
    await sessions.end(context, merchant_id, used_last.id)
    assert [each.id for each in await sessions.list_live(context, merchant_id)] == [other.id]
    for whose, session_id in ((merchant_id, used_last.id), ("mer_other", other.id), (merchant_id, "fam_none")):
        with pytest.raises(LoopError, match="not_found"):
            await sessions.end(context, whose, session_id)


async def test_what_a_client_calls_itself_is_kept_short_and_printable(context: Context) -> None:
    registered = await merchants.register(context, SHOP, user_agent="Fire\x1bfox\n" + "x" * 500)
    (session,) = await sessions.list_live(context, registered.profile.merchant.id)
    assert session.user_agent == "Firefox" + "x" * 193


async def test_a_client_s_name_keeps_no_card_number_and_no_key(context: Context) -> None:
    registered = await merchants.register(context, SHOP, user_agent="till 4242 4242 4242 4242 sk_live_canary0123456789")
    (session,) = await sessions.list_live(context, registered.profile.merchant.id)
    assert session.user_agent is not None
    assert session.user_agent.startswith("till ")
    assert "4242" not in session.user_agent
    assert "canary" not in session.user_agent


async def test_no_token_is_kept_as_it_is(context: Context) -> None:
    signed_in = await merchants.register(context, SHOP)
    async with context.database.transaction() as session:
        assert await rows.lock_token(session, signed_in.refresh_token) is None
        assert await rows.lock_token(session, sessions.hash_of(signed_in.refresh_token)) is not None


async def test_what_has_expired_is_purged(context: Context, clock: Clock) -> None:
    old = await merchants.register(context, SHOP)
    clock.forward(seconds=context.settings.refresh_token_ttl_s)
    fresh = await log_in(context)
    assert await retention.purge_sessions(context) == 2
    assert await retention.purge_sessions(context) == 0
    await refused(old.refresh_token, context)
    await merchants.refresh(context, fresh.refresh_token)
