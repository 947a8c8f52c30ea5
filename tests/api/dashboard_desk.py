"""A person at the dashboard, as the tests of its pages need one: a browser's cookies and forms, without a browser."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import aiohttp
from yarl import URL

from tests.api.client import PASSWORD, Shop

_INPUT = re.compile(r'<input[^>]*\bname="(csrf|key|event)"[^>]*\bvalue="([^"]*)"')
_FORM = re.compile(r'<form\b[^>]*\baction="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)


@dataclass(frozen=True)
class Seen:
    """A page as it was answered."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def location(self) -> str:
        return self.headers["Location"]

    def form(self, action: str) -> dict[str, str]:
        """Return the hidden fields of the first form that leads to an address ending so."""
        for address, inside in _FORM.findall(self.text):
            if address.endswith(action):
                return {name: unescape(value) for name, value in _INPUT.findall(inside)}
        raise AssertionError(f"no form leads to {action}")

    def offers(self, action: str) -> bool:
        """Tell whether a form leads to an address ending so."""
        return any(address.endswith(action) for address, _ in _FORM.findall(self.text))


@dataclass
class Desk:
    """A browser's session: cookies are kept, redirects are not followed."""

    client: aiohttp.ClientSession
    shop: Shop

    async def get(self, path: str, **headers: str) -> Seen:
        async with self.client.get(self.shop.url + path, headers=headers, allow_redirects=False) as answer:
            return Seen(answer.status, await answer.text(), answer.headers)

    async def told(self, path: str) -> Any:
        """Return what a page says as JSON."""
        answer = await self.get(path)
        assert answer.status == 200, answer.text
        return json.loads(answer.text)

    async def post(self, path: str, form: Mapping[str, str], *, headers: Mapping[str, str] | None = None) -> Seen:
        """Send a form as a browser does from one of our own pages, unless other headers are given."""
        given = {"Sec-Fetch-Site": "same-origin", "Origin": self.shop.url} if headers is None else dict(headers)
        async with self.client.post(
            self.shop.url + path, data=dict(form), headers=given, allow_redirects=False
        ) as answer:
            return Seen(answer.status, await answer.text(), answer.headers)

    async def sign_in(self, password: str = PASSWORD, **more: str) -> Seen:
        return await self.post("/dashboard/sign-in", {"email": self.shop.merchant.email, "password": password, **more})

    async def act(self, order_id: str, action: str, **fields: str) -> Seen:
        """Open an order's page and send one of its forms."""
        page = await self.get(f"/dashboard/orders/{order_id}")
        return await self.post(f"/dashboard/orders/{order_id}/{action}", {**page.form(f"/{action}"), **fields})

    def cookie(self, name: str = "loop_session") -> str:
        return self.client.cookie_jar.filter_cookies(URL(self.shop.url))[name].value


@asynccontextmanager
async def new_desk(shop: Shop, *, is_signed_in: bool = True) -> AsyncIterator[Desk]:
    """Open a browser's session for a shop's person."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        desk = Desk(client, shop)
        if is_signed_in:
            assert (await desk.sign_in()).status == 303
        yield desk
