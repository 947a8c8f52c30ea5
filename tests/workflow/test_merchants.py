"""Merchants: accounts, guesses slowed down, passwords set anew, and API keys."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loop import config
from loop.domain.accounts import require_email, require_name, require_password
from loop.domain.api_keys import hash_of, is_well_formed
from loop.domain.errors import ErrorKind, LoopError
from loop.runtime import Chance, opened
from loop.storage import merchants as rows
from loop.workflows import merchants, passwords, tokens
from loop.workflows.context import Context
from loop.workflows.merchants import NewApiKey, NewMerchant, ProfileChange, SignedIn
from loop.workflows.webhooks import reveal_secret

SHOP = NewMerchant("My shop", "Me@Example.com", "correct horse")
WRONG = "wrong horse"


@dataclass
class Clock:
    """A clock that stands until it is moved."""

    at: datetime = field(default_factory=lambda: datetime(2026, 3, 10, 12, tzinfo=UTC))

    def now(self) -> datetime:
        """Return the time it stands at."""
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def context(database_url: str, clock: Clock, tmp_path: Path) -> AsyncIterator[Context]:
    settings = config.load(
        {
            "database_url": database_url,
            "data_dir": tmp_path / "loop",
            "jwt_secret": "signs 0123456789abcdef0123456789abcdef",
            "encryption_key": "seals 0123456789abcdef0123456789abcdef",
        },
        environ={},
    )
    async with opened(settings, Chance(now=clock.now)) as context:
        yield context


async def log_in(context: Context, password: str = SHOP.password, email: str = SHOP.email) -> SignedIn:
    return await merchants.login(context, email=email, password=password, address="203.0.113.9")


async def refused(code: str, work: object) -> LoopError:
    with pytest.raises(LoopError) as error:
        await work  # type: ignore[misc]
    assert error.value.code == code
    return error.value


async def test_a_merchant_is_made_with_an_endpoint_that_has_a_secret_and_no_address(context: Context) -> None:
    profile = await merchants.create(context, SHOP)
    assert (profile.merchant.name, profile.merchant.email) == ("My shop", "me@example.com")
    assert profile.merchant.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    stored = await merchants.get_profile(context, profile.merchant.id)
    assert stored == profile
    assert stored.endpoint is not None
    assert stored.endpoint.url is None
    assert reveal_secret(context, stored.endpoint).startswith("whsec_")


async def test_an_address_is_taken_once_however_it_is_written(context: Context) -> None:
    await merchants.create(context, SHOP)
    await refused("email_exists", merchants.create(context, replace(SHOP, email=" ME@example.COM ")))
    outcomes = await asyncio.gather(
        *(merchants.register(context, replace(SHOP, email="two@example.com")) for _ in range(4)),
        return_exceptions=True,
    )
    errors = [each.code for each in outcomes if isinstance(each, LoopError)]
    assert errors == ["email_exists"] * 3


async def test_registration_can_be_closed_without_closing_it_to_the_operator(context: Context) -> None:
    closed = replace(context, settings=replace(context.settings, is_registration_open=False))
    error = await refused("registration_closed", merchants.register(closed, SHOP))
    assert error.kind is ErrorKind.FORBIDDEN
    await merchants.create(closed, SHOP)


async def test_a_sign_in_answers_tokens_of_that_merchant(context: Context) -> None:
    registered = await merchants.register(context, SHOP)
    signed_in = await log_in(context)
    assert signed_in.profile == registered.profile
    assert signed_in.refresh_token != registered.refresh_token
    for each in (registered, signed_in):
        assert tokens.verify(context, each.access_token).merchant_id == registered.profile.merchant.id
        assert each.refresh_token not in repr(each)
        assert each.access_token not in repr(each)


async def test_an_unknown_user_and_a_wrong_password_are_refused_alike(context: Context) -> None:
    await merchants.create(context, SHOP)
    wrong = await refused("invalid_credentials", log_in(context, WRONG))
    unknown = await refused("invalid_credentials", log_in(context, email="nobody@example.com"))
    assert (wrong.kind, wrong.message) == (unknown.kind, unknown.message)


async def test_an_unknown_user_costs_as_much_time_as_a_wrong_password() -> None:
    async def seconds(stored: str | None) -> float:
        began = time.perf_counter()
        assert not await passwords.verify_password(WRONG, stored)
        return time.perf_counter() - began

    known = "$argon2id$v=19$m=19456,t=2,p=1$08v7n3FyNAfNOpNtXyIcIw$nDxgFApGwJWbvvsG9+dAfXhv5Fsq80Fj1KXuVE0Onl4"
    pairs = [(await seconds(known), await seconds(None)) for _ in range(7)]
    assert 0.5 < statistics.median(unknown / wrong for wrong, unknown in pairs) < 2


async def test_a_password_is_the_same_however_a_keyboard_composes_it(context: Context) -> None:
    await merchants.create(context, NewMerchant("My shop", SHOP.email, "caf\u00e9 au lait"))
    await log_in(context, "cafe\u0301 au lait")


async def test_a_hash_of_other_parameters_is_made_anew_at_sign_in(context: Context) -> None:
    profile = await merchants.create(context, SHOP)
    # "correct horse" with half the memory and one pass.
    weak = "$argon2id$v=19$m=9728,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$WQejbS6GSwReXmvy1halzuvhkX9qqIOwRh5qr9uYsy4"
    async with context.database.transaction() as session:
        await rows.update_profile(session, replace(profile.merchant, password_hash=weak))
    assert (await log_in(context)).profile.merchant.id == profile.merchant.id
    renewed = (await merchants.get_profile(context, profile.merchant.id)).merchant.password_hash
    assert not passwords.is_outdated(renewed)
    await log_in(context)


async def test_a_flood_of_passwords_is_refused_and_not_queued_without_end() -> None:
    outcomes = await asyncio.gather(
        *(passwords.verify_password("x", None) for _ in range(passwords.MAX_WAITING + 20)), return_exceptions=True
    )
    errors = [each.code for each in outcomes if isinstance(each, LoopError)]
    assert errors == ["too_many_sign_ins"] * 20
    assert not await passwords.verify_password("x", None)


async def test_guesses_at_one_account_wait_and_its_owner_gets_in_when_the_wait_is_over(
    context: Context, clock: Clock
) -> None:
    await merchants.create(context, SHOP)
    for _ in range(10):
        await refused("invalid_credentials", log_in(context, WRONG))
    error = await refused("too_many_attempts", log_in(context))
    assert (error.kind, error.retry_after_s) == (ErrorKind.RATE_LIMITED, 1)
    clock.at += timedelta(seconds=1)
    await log_in(context)
    await refused("invalid_credentials", log_in(context, WRONG))


async def test_guesses_at_many_accounts_from_one_address_wait(context: Context) -> None:
    await merchants.create(context, SHOP)
    for number in range(50):
        await refused("invalid_credentials", log_in(context, email=f"{number}@example.com"))
    await refused("too_many_attempts", log_in(context))
    await merchants.login(context, email=SHOP.email, password=SHOP.password, address="198.51.100.1")


async def test_guesses_made_at_once_count_too(context: Context) -> None:
    await merchants.create(context, SHOP)
    outcomes = await asyncio.gather(
        *(log_in(context, password=f"wrong horse {number}") for number in range(15)), return_exceptions=True
    )
    codes = sorted(each.code for each in outcomes if isinstance(each, LoopError))
    assert codes == ["invalid_credentials"] * 10 + ["too_many_attempts"] * 5


async def test_a_profile_changes_in_what_is_named_only(context: Context, clock: Clock) -> None:
    before = await merchants.create(context, SHOP)
    merchant_id = before.merchant.id
    clock.at += timedelta(minutes=1)
    url = "https://shop.example.com/hooks"
    changed = await merchants.update_profile(context, merchant_id, ProfileChange(has_webhook_url=True, webhook_url=url))
    assert changed == await merchants.get_profile(context, merchant_id)
    assert changed.merchant.name == "My shop"
    assert changed.endpoint is not None
    assert (changed.endpoint.url, changed.endpoint.updated_at) == (url, clock.at)
    renamed = await merchants.update_profile(context, merchant_id, ProfileChange(name=" Our shop "))
    assert renamed == await merchants.get_profile(context, merchant_id)
    assert renamed.merchant.name == "Our shop"
    assert renamed.endpoint == changed.endpoint
    removed = await merchants.update_profile(context, merchant_id, ProfileChange(has_webhook_url=True))
    assert removed.endpoint is not None
    assert removed.endpoint.url is None
    await refused(
        "invalid_webhook_url",
        merchants.update_profile(
            context, merchant_id, ProfileChange(has_webhook_url=True, webhook_url="http://10.0.0.1/")
        ),
    )
    await refused("not_found", merchants.update_profile(context, "mer_none", ProfileChange(name="Nobody")))


async def test_a_key_is_shown_once_and_kept_as_a_hash(context: Context, clock: Clock) -> None:
    merchant_id = (await merchants.create(context, SHOP)).merchant.id
    key, secret = await merchants.create_api_key(context, merchant_id, NewApiKey("till"))
    assert is_well_formed(secret)
    assert secret.startswith("sk_test_")  # without a live account
    assert secret.startswith(key.prefix)
    assert secret not in repr(key)
    async with context.database.reading() as reader:
        assert await rows.key_by_hash(reader, hash_of(secret)) == replace(key, scopes=["*"])
    later = clock.at + timedelta(days=1)
    live_key, live_secret = await merchants.create_api_key(
        context, merchant_id, NewApiKey("shop", expires_at=later, mode="live")
    )
    assert live_secret.startswith("sk_live_")
    assert [each.id for each in await merchants.list_api_keys(context, merchant_id)] in (
        [live_key.id, key.id],
        [key.id, live_key.id],  # ids of one millisecond come in any order
    )


async def test_keys_that_would_not_do_what_they_say_are_refused(context: Context, clock: Clock) -> None:
    merchant_id = (await merchants.create(context, SHOP)).merchant.id
    narrow = [NewApiKey("narrow", scopes=scopes) for scopes in ((), ("read",), ("*", "orders:all"), ("Orders:Read",))]
    for new in (NewApiKey("late", expires_at=clock.at), *narrow):
        await refused("validation_failed", merchants.create_api_key(context, merchant_id, new))
    await refused("not_found", merchants.create_api_key(context, "mer_none", NewApiKey("nobody's")))
    assert await merchants.list_api_keys(context, merchant_id) == []


async def test_a_key_is_revoked_by_its_own_merchant_only(context: Context) -> None:
    mine = (await merchants.create(context, SHOP)).merchant.id
    other = (await merchants.create(context, replace(SHOP, email="other@example.com"))).merchant.id
    key, _ = await merchants.create_api_key(context, mine, NewApiKey("till"))
    await refused("not_found", merchants.revoke_api_key(context, other, key.id))
    await merchants.revoke_api_key(context, mine, key.id)
    await refused("not_found", merchants.revoke_api_key(context, mine, key.id))
    assert await merchants.list_api_keys(context, mine) == []


async def test_a_rotated_key_goes_on_for_the_overlap_beside_one_that_may_do_the_same(
    context: Context, clock: Clock
) -> None:
    merchant_id = (await merchants.create(context, SHOP)).merchant.id
    new = NewApiKey("till", clock.at + timedelta(days=30), mode="live", scopes=("refunds:write", "orders:read"))
    key, secret = await merchants.create_api_key(context, merchant_id, new)
    clock.at += timedelta(days=10)
    old, follower, follower_secret = await merchants.rotate_api_key(
        context, merchant_id, key.id, overlap=timedelta(hours=24)
    )
    assert (old.id, old.expires_at) == (key.id, clock.at + timedelta(hours=24))
    assert follower_secret.startswith("sk_live_")
    assert follower_secret != secret
    assert (follower.name, follower.scopes) == ("till", ("orders:read", "refunds:write"))
    assert follower.expires_at == clock.at + timedelta(days=30)  # as long as the first was made for
    listed = {each.id: each.expires_at for each in await merchants.list_api_keys(context, merchant_id)}
    assert listed == {old.id: old.expires_at, follower.id: follower.expires_at}


async def test_a_rotation_never_makes_a_key_last_longer(context: Context, clock: Clock) -> None:
    merchant_id = (await merchants.create(context, SHOP)).merchant.id
    ends_at = clock.at + timedelta(hours=1)
    key, _ = await merchants.create_api_key(context, merchant_id, NewApiKey("till", ends_at))
    old, follower, _ = await merchants.rotate_api_key(context, merchant_id, key.id, overlap=timedelta(hours=24))
    assert old.expires_at == ends_at
    endless, _ = await merchants.create_api_key(context, merchant_id, NewApiKey("endless"))
    _, second, _ = await merchants.rotate_api_key(context, merchant_id, endless.id, overlap=timedelta(0))
    assert second.expires_at is None
    clock.at = ends_at
    for gone in (key.id, endless.id):
        overlap = timedelta(hours=1)
        await refused("invalid_status", merchants.rotate_api_key(context, merchant_id, gone, overlap=overlap))
    await merchants.revoke_api_key(context, merchant_id, follower.id)
    for absent in (follower.id, "key_none"):
        await refused("not_found", merchants.rotate_api_key(context, merchant_id, absent, overlap=timedelta(hours=1)))


async def test_a_password_that_is_reset_ends_all_sessions_and_leaves_the_keys(context: Context) -> None:
    merchant_id = (await merchants.create(context, SHOP)).merchant.id
    await merchants.create_api_key(context, merchant_id, NewApiKey("till"))
    signed_in = [await log_in(context) for _ in range(2)]
    assert await merchants.reset_password(context, merchant_id, "another horse") == 2
    for each in signed_in:
        await refused("invalid_refresh_token", merchants.refresh(context, each.refresh_token))
    await refused("invalid_credentials", log_in(context))
    await log_in(context, "another horse")
    assert len(await merchants.list_api_keys(context, merchant_id)) == 1
    await refused("validation_failed", merchants.reset_password(context, merchant_id, "short"))
    await refused("not_found", merchants.reset_password(context, "mer_none", "another horse"))


@pytest.mark.parametrize("email", ["a@b", "first.last+tag@example.com", " Upper@Example.COM ", "x@" + "y" * 318])
def test_what_looks_like_an_address_is_one(email: str) -> None:
    assert require_email(email) == email.strip().lower()


@pytest.mark.parametrize("email", ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@b\n.c", "a\x00@b", "x@" + "y" * 319])
def test_what_cannot_be_an_address_is_refused(email: str) -> None:
    with pytest.raises(LoopError, match="email"):
        require_email(email)


def test_names_and_passwords_have_bounds() -> None:
    assert require_name(" ab ") == "ab"
    assert require_name("n" * 255)
    assert require_password("8 chars!") == "8 chars!"
    assert require_password("p" * 100)
    for name in ("", "a", " a ", "n" * 256, "a\nb"):
        with pytest.raises(LoopError, match="name"):
            require_name(name)
    for password in ("", "7 chars", "p" * 101):
        with pytest.raises(LoopError, match="password"):
            require_password(password)
