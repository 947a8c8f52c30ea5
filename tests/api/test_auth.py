"""Authentication over HTTP: API keys, access tokens, what each is refused for, and when keys were last used."""

import base64
import json
import statistics
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from loop.domain.api_keys import make_api_key
from loop.server import auth
from loop.server.auth import KEPT_S, KeyCache, flush_last_used, key_cache
from loop.storage import merchants as merchant_rows
from loop.storage.merchants import ApiKey
from loop.workflows import merchants, tokens
from loop.workflows.merchants import NewApiKey, NewMerchant
from tests.api.client import Shop

NOW = datetime(2030, 1, 1, tzinfo=UTC)
OTHER = NewMerchant("Other shop", "other@example.com", "correct horse battery")


async def test_each_way_in(shop: Shop) -> None:
    for given in (
        {"X-API-Key": shop.key},
        {"Authorization": f"Bearer {shop.key}"},
        {"Authorization": f"bearer {shop.key}"},
        {"Authorization": f"Bearer {shop.token}"},
    ):
        assert (await shop.get("/v1/orders", auth=given)).status == 200


async def test_without_credentials_nobody_comes_in(shop: Shop) -> None:
    for given in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}):
        answer = await shop.get("/v1/orders", auth=given)
        assert (answer.status, answer.code) == (401, "missing_credentials")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def unknown_keys(key: str) -> list[str]:
    other = make_api_key("test", lambda count: b"\7" * count)
    return ["", "x", "sk_test_", key[:-1], key + "a", key[:-1] + ("a" if key[-1] != "a" else "b"),
            key.replace("sk_test_", "sk_live_"), other, "é" * 46, "sk_test_" + "é" * 38]  # fmt: skip


async def test_unknown_and_malformed_keys_are_answered_alike(shop: Shop) -> None:
    texts = set()
    for key in unknown_keys(shop.key):
        answer = await shop.get("/v1/orders", auth={"X-API-Key": key})
        assert (answer.status, answer.code) == (401, "invalid_api_key"), key
        texts.add(json.dumps({**answer.body, "requestId": ""}))
    assert len(texts) == 1


def claims(**changed: object) -> dict[str, Any]:
    now = int(datetime.now(UTC).timestamp())  # noqa: TID251 - what the running server compares with
    return {"iss": "loop", "aud": "loop-api", "sub": "mer_x", "iat": now, "exp": now + 60, **changed}


def unsigned(content: dict[str, Any]) -> str:
    parts = ({"alg": "none", "typ": "at+jwt"}, content)
    return ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts) + "."


def as_rs256(content: dict[str, Any], kid: str) -> str:
    """Return a token that is signed by somebody's own RSA key."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return jwt.encode(content, private, algorithm="RS256", headers={"typ": "at+jwt", "kid": kid})


async def test_a_token_must_be_ours_whole_and_fresh(shop: Shop) -> None:
    secret = shop.context.settings.jwt_secret.reveal()
    own_key = tokens.key_id(shop.context)

    def signed(content: dict[str, Any], key: str = secret, algorithm: str = "HS256", **head: object) -> str:
        return jwt.encode(content, key, algorithm=algorithm, headers={"typ": "at+jwt", "kid": own_key, **head})

    ours = partial(claims, sub=shop.merchant.id, sid=tokens.verify(shop.context, shop.token).session_id)
    assert (await shop.get("/v1/orders", auth={"Authorization": f"Bearer {signed(ours())}"})).status == 200
    missing = ours()
    del missing["exp"]
    ours_of_another = ours(sub=(await merchants.create(shop.context, OTHER)).merchant.id)
    bad = [
        "x", "a.b.c", "e30.e30.e30", "é.é.é", "." * 3000, unsigned(ours()), shop.token[:-2], shop.token + "x",
        signed(ours(), key="another secret of enough length, really"), signed(ours(), algorithm="HS512",
        key=secret * 2), signed(ours(), typ="JWT"), signed(ours(iss="other")), signed(ours(aud="other")),
        signed(ours(exp=1)), signed(ours(iat=ours()["iat"] + 3600)), signed(ours(sub=5)), signed(missing),
        signed(ours(exp=10**30)), signed(ours(exp="soon")), signed(ours(exp=float("inf"))),
        signed(ours(sub="mer_nobody")), signed(ours(sid="fam_none")), signed(ours(sid=None)), signed(ours_of_another),
        signed(ours(), kid="another"), signed(ours(), kid=""), signed(ours(), key="\0" * 32),
        as_rs256(ours(), own_key),
    ]  # fmt: skip
    for token in bad:
        answer = await shop.get("/v1/orders", auth={"Authorization": f"Bearer {token}"})
        assert (answer.status, answer.code) == (401, "invalid_token"), token
        assert len(token) < 30 or token not in answer.text


async def test_a_key_that_was_revoked_takes_as_long_to_refuse_as_one_that_never_was(shop: Shop) -> None:
    made, revoked = await merchants.create_api_key(shop.context, shop.merchant.id, NewApiKey("lost"))
    await merchants.revoke_api_key(shop.context, shop.merchant.id, made.id)
    unknown = make_api_key("test", lambda count: b"\7" * count)

    async def seconds(key: str) -> float:
        began = time.perf_counter()
        assert (await shop.get("/v1/orders", auth={"X-API-Key": key})).code == "invalid_api_key"
        return time.perf_counter() - began

    pairs = [(await seconds(revoked), await seconds(unknown)) for _ in range(25)]
    assert 0.4 < statistics.median(never / once for once, never in pairs) < 2.5


async def test_an_expired_key_is_refused(shop: Shop) -> None:
    now = shop.context.now()
    _, secret = await merchants.create_api_key(
        shop.context, shop.merchant.id, NewApiKey("short", now + timedelta(seconds=1))
    )
    assert (await shop.get("/v1/orders", auth={"X-API-Key": secret})).status == 200
    (kept,) = [key for _, key in key_cache(shop.context)._found.values() if key.name == "short"]
    key_cache(shop.context).put(ApiKey(**{**_fields(kept), "expires_at": now}))
    answer = await shop.get("/v1/orders", auth={"X-API-Key": secret})
    assert (answer.status, answer.code) == (401, "expired_api_key")


def _fields(key: ApiKey) -> dict[str, Any]:
    return {name: getattr(key, name) for name in ApiKey.__dataclass_fields__}


async def test_a_revoked_key_is_refused_when_its_time_in_the_cache_is_up(shop: Shop) -> None:
    made, secret = await merchants.create_api_key(shop.context, shop.merchant.id, NewApiKey("lost"))
    given = {"X-API-Key": secret}
    assert (await shop.get("/v1/orders", auth=given)).status == 200
    await merchants.revoke_api_key(shop.context, shop.merchant.id, made.id)
    key_cache(shop.context).forget(made.id)
    answer = await shop.get("/v1/orders", auth=given)
    assert (answer.status, answer.code) == (401, "invalid_api_key")


def a_key(name: str) -> ApiKey:
    return ApiKey(f"key_{name}", "mer_x", name, "sk_test_", name, "test", ("*",), None, None, None, NOW)


def test_a_known_key_is_believed_for_a_bounded_time() -> None:
    at = 100.0
    cache = KeyCache(lambda: at)
    cache.put(a_key("a"))
    at += KEPT_S - 0.001
    assert cache.get("a") == a_key("a")
    at += 0.001
    assert cache.get("a") is None


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "KEPT_KEYS", 2)
    cache = KeyCache()
    for name in ("a", "b", "a", "c"):
        cache.put(a_key(name))
    assert [cache.get(name) is not None for name in ("a", "b", "c")] == [True, False, True]


async def test_last_use_is_written_down_together(shop: Shop) -> None:
    before = shop.context.now()
    for _ in range(3):
        await shop.get("/v1/orders")
    await flush_last_used(shop.context)
    await flush_last_used(shop.context)
    async with shop.context.database.reading() as reader:
        (key,) = await merchant_rows.keys_of(reader, shop.merchant.id)
    assert key.last_used_at is not None
    assert before <= key.last_used_at <= shop.context.now()
