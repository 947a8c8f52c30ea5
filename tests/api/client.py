"""A merchant's own client, as the API's tests use it: real sockets, and answers with what a test asks about."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack
from urllib.parse import urlsplit

import aiohttp

from loop.storage.merchants import Merchant
from loop.workflows import merchants, processor_configs, sessions
from loop.workflows.context import Context
from loop.workflows.merchants import NewApiKey, NewMerchant
from loop.workflows.processor_configs import ConfigChange
from tests.api.contract import require_documented
from tests.canaries import PASSWORD, aviary

__all__ = ["PASSWORD", "Answer", "Extras", "Shop", "open_shop"]


@dataclass(frozen=True)
class Answer:
    """One answer; `body` is its JSON, None when it has none."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None

    @property
    def code(self) -> str:
        """The error's code, after a check of the one shape that errors have."""
        body = self.body
        assert isinstance(body, dict)
        assert isinstance(body["code"], str)
        assert isinstance(body["message"], str)
        assert body["requestId"] == self.headers["X-Correlation-ID"]
        assert self.headers["Content-Type"] == "application/json"
        return str(body["code"])


class Extras(TypedDict, total=False):
    """What else a call may be made with."""

    headers: Mapping[str, str]
    raw: bytes
    auth: Mapping[str, str]


@dataclass(frozen=True)
class Shop:
    """A merchant with an API key, an access token and a way to call."""

    session: aiohttp.ClientSession
    url: str
    context: Context
    merchant: Merchant
    key: str = field(repr=False)
    token: str = field(repr=False)

    async def call(
        self,
        method: str,
        path: str,
        content: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        auth: Mapping[str, str] | None = None,
    ) -> Answer:
        """Call and return the answer, redirects not followed; `content` is sent as JSON, `raw` as it is."""
        sent = raw if raw is not None else None if content is None else json.dumps(content).encode()
        given = {"X-API-Key": self.key} if auth is None else dict(auth)
        async with self.session.request(
            method,
            path if path.startswith("http") else self.url + path,
            data=None if sent is None else io.BytesIO(sent),
            headers={**given, **({"Content-Type": "application/json"} if sent else {}), **(headers or {})},
            allow_redirects=False,
        ) as response:
            answer = Answer(response.status, await response.text(), response.headers)
        aviary.require_none_in_answer(answer.text, where=f"the answer to {method} {path.partition('?')[0]}")
        require_documented(method, urlsplit(path).path, status=answer.status, headers=answer.headers, text=answer.text)
        return answer

    async def get(self, path: str, **more: Unpack[Extras]) -> Answer:
        return await self.call("GET", path, **more)

    async def post(self, path: str, content: object = None, **more: Unpack[Extras]) -> Answer:
        return await self.call("POST", path, content, **more)

    async def order(self, **fields: object) -> dict[str, Any]:
        """Create an order and return it."""
        answer = await self.post("/v1/orders", {"amount": 4999, "currency": "USD", **fields})
        assert answer.status == 201, answer.text
        created: dict[str, Any] = answer.body
        return created

    async def paid_order(self, card: str = "tok_approve", **fields: object) -> dict[str, Any]:
        """Create an order, pay it with a token of the sandbox and return it as it then is."""
        order = await self.order(**fields)
        content = {"paymentMethod": {"type": "card", "token": card}}
        paid = await self.post(f"/v1/orders/{order['id']}/pay", content)
        assert paid.status == 200, paid.text
        read: dict[str, Any] = (await self.get(f"/v1/orders/{order['id']}")).body
        return read

    async def use_sandbox(self, webhook_secret: str | None = None) -> str:
        """Configure the sandbox; return the config's id."""
        credentials = {} if webhook_secret is None else {"webhookSecret": webhook_secret}
        config = await processor_configs.put(
            self.context, self.merchant.id, "sandbox", credentials=credentials, change=ConfigChange()
        )
        return config.id


async def open_shop(session: aiohttp.ClientSession, url: str, context: Context, *, name: str = "shop") -> Shop:
    """Make a merchant who has an API key and has signed in."""
    profile = await merchants.create(context, NewMerchant(name, f"{name}@example.com", PASSWORD))
    _, secret = await merchants.create_api_key(context, profile.merchant.id, NewApiKey("till", mode="test"))
    async with context.database.transaction() as transaction:
        tokens = await sessions.open_session(context, transaction, profile.merchant.id, "the shop's own client")
    for each in (secret, tokens.access_token, tokens.refresh_token):
        aviary.keep(each)
    return Shop(session, url, context, profile.merchant, secret, tokens.access_token)
