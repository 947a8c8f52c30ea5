"""Processors' webhooks over HTTP: signed ones are kept, everything else is refused in time and in words."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest

from loop.processors.sandbox import SandboxProcessor
from tests.api.client import Answer, Shop

SECRET = "whsec_sandbox"


async def signed(shop: Shop, secret: str = SECRET) -> tuple[bytes, dict[str, str]]:
    """Pay an order and return a webhook about it, as the sandbox would send it."""
    order = await shop.paid_order()
    sandbox = shop.context.processors.get("sandbox")
    assert isinstance(sandbox, SandboxProcessor)
    ((raw, headers),) = sandbox.webhooks_for(order["processorOrderId"], secret=secret)
    return raw, headers


async def deliver(shop: Shop, path: str, raw: bytes, headers: dict[str, str]) -> Answer:
    return await shop.post(path, raw=raw, headers=headers, auth={})


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_signed_webhook_is_taken(shop: Shop, *, is_shared: bool) -> None:
    config_id = await shop.use_sandbox(SECRET)
    path = "/webhooks/sandbox" if is_shared else f"/webhooks/sandbox/{config_id}"
    raw, headers = await signed(shop)
    for answer in await asyncio.gather(*(deliver(shop, path, raw, headers) for _ in range(5))):
        assert (answer.status, answer.body) == (200, {"received": True})


async def test_unsigned_and_wrongly_signed_webhooks_are_refused(shop: Shop) -> None:
    config_id = await shop.use_sandbox(SECRET)
    raw, headers = await signed(shop)
    _, wrong = await signed(shop, "whsec_other")
    for path in (f"/webhooks/sandbox/{config_id}", "/webhooks/sandbox"):
        for given, code in (({}, "missing_signature"), (wrong, "invalid_signature"),
                            ({"X-Sandbox-Signature": "\u00e9"}, "invalid_signature")):  # fmt: skip
            answer = await deliver(shop, path, raw, given)
            assert (answer.status, answer.code) == (400, code), path
        changed = await deliver(shop, path, raw + b" ", headers)
        assert (changed.status, changed.code) == (400, "invalid_signature")
        assert (await deliver(shop, path, b"\xff\x00{", headers)).code == "invalid_signature"


async def test_an_account_without_a_secret_takes_nothing(shop: Shop) -> None:
    config_id = await shop.use_sandbox()
    raw, headers = await signed(shop)
    answer = await deliver(shop, f"/webhooks/sandbox/{config_id}", raw, headers)
    assert (answer.status, answer.code) == (503, "webhook_secret_missing")
    assert int(answer.headers["Retry-After"]) > 0


async def test_unknown_accounts_and_processors_are_absent(shop: Shop) -> None:
    raw, headers = await signed(shop)
    for path in ("/webhooks/nobody", "/webhooks/sandbox/pcf_nothing", "/webhooks/sandbox/%00", "/webhooks/%2e%2e"):
        answer = await deliver(shop, path, raw, headers)
        assert (answer.status, answer.code) == (404, "not_found"), path
    config_id = await shop.use_sandbox(SECRET)
    assert (await deliver(shop, f"/webhooks/stripe/{config_id}", raw, headers)).status == 404


async def test_a_large_webhook_is_refused(shop: Shop) -> None:
    config_id = await shop.use_sandbox(SECRET)
    path = f"/webhooks/sandbox/{config_id}"
    answer = await deliver(shop, path, b"x" * (1024 * 1024 + 1), {})
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert (await deliver(shop, path, b"x" * 1024 * 1024, {})).code == "missing_signature"


async def test_a_body_without_end_is_refused_while_it_is_read(shop: Shop) -> None:
    config_id = await shop.use_sandbox(SECRET)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 65_536

    with suppress(aiohttp.ClientError, ConnectionError):  # the connection is closed under it
        async with shop.session.post(f"{shop.url}/webhooks/sandbox/{config_id}", data=endless()) as answer:
            assert answer.status == 413
    assert sent * 65_536 < 64 * 1024 * 1024
