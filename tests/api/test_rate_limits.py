"""Rate limits over HTTP: who is counted with whom, what a caller hears, and whose word on addresses is believed."""

from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network

import pytest
from redis.asyncio import Redis
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn import Config

from loop.domain.api_keys import hash_of, make_api_key
from loop.domain.rate_limits import BURST_S
from loop.runtime import Running, trusted_hosts
from loop.server.request import client_address
from loop.storage import merchants
from tests.api.client import Answer, Shop, open_shop
from tests.servers import running_redis

PASSWORD = "correct horse battery"
PER_S = 1
LIMIT = PER_S * BURST_S
MAX_TRIES = 100


@pytest.fixture
def database_url(sqlite_database_url: str) -> str:
    return sqlite_database_url  # nothing here is the database's


@pytest.fixture
def flags() -> dict[str, object]:
    classes = ("read", "write", "pay", "sign_in", "webhook", "open")
    return {
        **{f"limit_{each}_per_s": PER_S for each in classes},
        "limit_pay_per_s": 0,
        "trusted_proxies": "127.0.0.0/8, 10.0.0.0/8",
    }


def from_address(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


def require_limited(answer: Answer) -> None:
    assert (answer.status, answer.code) == (429, "rate_limited"), answer.text
    assert 1 <= int(answer.headers["Retry-After"]) <= BURST_S
    assert answer.headers["Retry-After"] in answer.body["message"]
    assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == (str(LIMIT), "0")


async def until_limited(ask: Callable[[int], Awaitable[Answer]]) -> Answer:
    """Ask until the answer is 429; a busy machine takes a few more tries, since time passes between them."""
    for number in range(MAX_TRIES):
        answer = await ask(number)
        if answer.status == 429:
            return answer
    raise AssertionError("never limited")


async def test_a_key_has_its_limit_and_hears_what_is_left(shop: Shop) -> None:
    created = [await shop.post("/v1/orders", {"amount": 1}) for _ in range(3)]
    assert [answer.status for answer in created] == [201] * 3
    left = [int(answer.headers["RateLimit-Remaining"]) for answer in created]
    assert left[0] == LIMIT - 1
    assert left == sorted(left, reverse=True)
    assert {answer.headers["RateLimit-Limit"] for answer in created} == {str(LIMIT)}
    assert 1 <= int(created[-1].headers["RateLimit-Reset"]) <= BURST_S
    require_limited(await until_limited(lambda _: shop.post("/v1/orders", {})))
    reads = await shop.get("/v1/orders")
    assert reads.status == 200  # reading is counted apart
    assert len(reads.body["data"]) == 3


async def test_a_limit_of_0_is_none(shop: Shop) -> None:
    order = await shop.order()
    for _ in range(2 * LIMIT):
        answer = await shop.post(f"/v1/orders/{order['id']}/cancel", {"nonsense": 1})
        assert answer.status == 400
        assert "RateLimit-Limit" not in answer.headers


async def test_one_key_does_not_use_up_anothers_limit_nor_its_merchants(served: Running, shop: Shop) -> None:
    require_limited(await until_limited(lambda _: shop.get("/v1/orders")))
    other = await open_shop(shop.session, shop.url, served.context, name="other")
    assert (await other.get("/v1/orders")).status == 200
    person = {"Authorization": f"Bearer {shop.token}"}
    assert (await shop.get("/v1/orders", auth=person)).status == 200
    require_limited(await until_limited(lambda _: shop.get("/v1/orders", auth=person)))


async def test_unknown_keys_are_looked_for_only_so_often(shop: Shop) -> None:
    def unknown(number: int) -> Awaitable[Answer]:
        key = make_api_key("test", bytes([number]).__mul__)
        return shop.get("/v1/orders", auth={"X-API-Key": key})

    assert (await unknown(0)).code == "invalid_api_key"
    require_limited(await until_limited(unknown))
    mistyped = {"X-API-Key": f"{shop.key[:-1]}{'a' if shop.key[-1] != 'a' else 'b'}"}  # no look is needed
    assert (await shop.get("/v1/orders", auth=mistyped)).code == "invalid_api_key"


async def test_signing_in_and_registering_count_together_by_address(shop: Shop) -> None:
    login = {"email": "nobody@example.com", "password": PASSWORD}
    here, elsewhere = from_address("203.0.113.1"), from_address("203.0.113.2")
    refresh = {"refreshToken": "x"}
    require_limited(await until_limited(lambda _: shop.post("/api/auth/refresh", refresh, headers=here)))
    require_limited(await shop.post("/api/auth/login", login, headers=here))
    assert (await shop.post("/api/auth/login", login, headers=elsewhere)).status == 401
    assert (await shop.get("/dashboard/sign-in", headers=here)).status == 200


async def test_webhooks_and_pages_are_counted_by_address_and_health_is_not(shop: Shop) -> None:
    here, elsewhere = from_address("203.0.113.3"), from_address("203.0.113.4")
    for _ in range(2 * LIMIT):
        assert (await shop.get("/health", auth={}, headers=here)).status == 200
    require_limited(await until_limited(lambda _: shop.post("/webhooks/sandbox/pc_1", {}, auth={}, headers=here)))
    assert (await shop.get("/checkout/cs_1", auth={}, headers=here)).status == 404
    require_limited(await until_limited(lambda _: shop.get("/checkout/cs_1", auth={}, headers=here)))
    assert (await shop.post("/webhooks/sandbox/pc_1", {}, auth={}, headers=elsewhere)).status != 429


async def test_a_browser_hears_of_it_on_a_page(shop: Shop) -> None:
    browser = {**from_address("203.0.113.5"), "Accept": "text/html,*/*;q=0.8", "Accept-Language": "de"}
    page = await until_limited(lambda _: shop.get("/checkout/cs_1", auth={}, headers=browser))
    assert page.headers["Content-Type"].startswith("text/html")
    assert 'lang="de"' in page.text
    assert page.headers["Retry-After"] == "1"


async def test_one_site_of_ipv6_addresses_is_one_caller(shop: Shop) -> None:
    def page(number: int) -> Awaitable[Answer]:
        return shop.get("/checkout/cs_1", auth={}, headers=from_address(f"2001:db8:1:2::{number + 1:x}"))

    await until_limited(page)
    assert (await shop.get("/checkout/cs_1", auth={}, headers=from_address("2001:db8:1:3::1"))).status == 404


async def test_what_a_client_says_before_the_proxy_does_not_count(shop: Shop) -> None:
    def page(number: int) -> Awaitable[Answer]:
        forged = from_address(f"198.51.100.{number}, 203.0.113.7, 10.1.2.3")
        return shop.get("/checkout/cs_1", auth={}, headers=forged)

    await until_limited(page)


class TestWithoutTrustedProxies:
    @pytest.fixture
    def flags(self) -> dict[str, object]:
        return {"limit_open_per_s": PER_S}

    async def test_forwarded_addresses_and_schemes_are_not_believed(self, shop: Shop) -> None:
        def page(number: int) -> Awaitable[Answer]:
            said = {"X-Forwarded-For": f"203.0.113.{number}", "X-Forwarded-Proto": "https"}
            return shop.get("/checkout/cs_1", auth={}, headers=said)

        assert "Strict-Transport-Security" not in (await page(0)).headers
        await until_limited(page)

    async def test_the_audit_log_has_the_address_of_the_connection(self, shop: Shop) -> None:
        await shop.post("/api/processors/sandbox", {"credentials": {}}, headers=from_address("203.0.113.9"))
        entries = (await shop.get("/api/audit-log")).body["data"]
        addresses = {entry["actor"]["address"] for entry in entries if entry["actor"]["kind"] == "api_key"}
        assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("10.1.2.3", "203.0.113.9"), ("::ffff:10.1.2.3", "203.0.113.9"), ("2001:db8::1", "203.0.113.9"),
        ("11.1.2.3", "11.1.2.3"), ("::ffff:11.1.2.3", "11.1.2.3"), ("2001:db9::1", "2001:db9::1"), ("", ""),
    ],
)  # fmt: skip
async def test_a_proxy_is_trusted_by_its_network_however_the_socket_shows_it(peer: str, address: str) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        seen.append(client_address(Request(scope, receive)))

    proxies = trusted_hosts([ip_network("10.0.0.0/8"), ip_network("2001:db8::/48")])
    config = Config(app, proxy_headers=True, forwarded_allow_ips=proxies, log_config=None)
    config.load()
    headers = [(b"x-forwarded-for", b"203.0.113.9")]
    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}
    await config.loaded_app(scope, None, None)
    assert seen == [address]


class TestRedis:
    @pytest.fixture
    def database_url(self, postgres_database_url: str) -> str:
        return postgres_database_url

    @pytest.fixture
    def redis_url(self) -> Iterator[str]:
        with running_redis() as url:
            yield url

    @pytest.fixture
    def flags(self, redis_url: str) -> dict[str, object]:
        return {"redis_url": redis_url, "limit_read_per_s": PER_S}

    async def test_what_is_counted_in_redis_still_counts_when_it_is_gone(self, shop: Shop, redis_url: str) -> None:
        require_limited(await until_limited(lambda _: shop.get("/v1/orders")))
        async with Redis.from_url(redis_url) as redis:
            assert await redis.keys("loop:limit:*") == [f"loop:limit:read:{await key_id(shop)}".encode()]
            await redis.shutdown(nosave=True)
        assert (await shop.get("/v1/orders")).status == 200
        require_limited(await until_limited(lambda _: shop.get("/v1/orders")))


async def key_id(shop: Shop) -> str:
    """Return the id of the shop's key."""
    async with shop.context.database.reading() as reader:
        found = await merchants.key_by_hash(reader, hash_of(shop.key))
    assert found is not None
    return found.id


async def test_behind_a_trusted_proxy_the_audit_log_and_sessions_have_the_callers_address(shop: Shop) -> None:
    sent = {"email": "shop@example.com", "password": PASSWORD}
    signed_in = await shop.post("/api/auth/login", sent, headers=from_address("203.0.113.9"))
    person = {"Authorization": f"Bearer {signed_in.body['token']}"}
    listed = (await shop.get("/api/sessions", auth=person)).body
    assert "203.0.113.9" in {each["address"] for each in listed}
    entries = (await shop.get("/api/audit-log")).body["data"]
    assert "203.0.113.9" in {each["actor"]["address"] for each in entries}


async def test_a_trusted_proxy_that_speaks_https_makes_browsers_stay_there(shop: Shop) -> None:
    answer = await shop.get("/health", headers={"X-Forwarded-Proto": "https"})
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")
    assert "Strict-Transport-Security" not in (await shop.get("/health")).headers
