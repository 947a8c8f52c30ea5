"""A customer in a browser: a Loop of its own, a merchant, the stand-in for the processors, and what the page did."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Response, Route

from loop.config import load
from loop.runtime import Running, running
from loop.testing.stub_browser import at_stub
from loop.testing.stub_psp import StubProcessor
from tests.api.client import Answer, Shop, open_shop
from tests.browser.world import free_port

Theme = Literal["light", "dark"]

CREDENTIALS: Final[Mapping[str, Mapping[str, str]]] = {
    "sandbox": {},
    "stripe": {"secretKey": "sk_test_loop", "publishableKey": "pk_test_loop", "webhookSecret": "whsec_loop"},
    "razorpay": {"keyId": "rzp_test_loop", "keySecret": "a-key-secret", "webhookSecret": "a-webhook-secret"},
}
AXE: Final = files("axe_playwright_python").joinpath("axe.min.js")
SERIOUS: Final = frozenset({"serious", "critical"})

WATCH_POLICY: Final = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} refused ${event.blockedURI}`));
"""


@dataclass
class Visit:
    """A browser's window on the shop's pages, and everything that went wrong in it."""

    page: Page
    troubles: list[str] = field(default_factory=list)
    bytes_from_loop: int = 0
    _measured: list[asyncio.Task[None]] = field(default_factory=list)

    async def press(self, words: str) -> None:
        """Press the button, or follow the link, that begins with these words, once the page's scripts have run.

        Whoever is faster takes the way without them: the processor's own page, for example.
        """
        await self.page.wait_for_load_state()
        await self.page.locator("button, a.button").filter(has_text=words).first.click()

    async def reads(self, words: str) -> None:
        """Wait until the page says this."""
        await self.page.get_by_text(words).first.wait_for()

    async def arrives(self, url_beginning: str) -> str:
        """Wait until the window is at an address that begins so; return it."""
        await self.page.wait_for_url(lambda url: url.startswith(url_beginning))
        return self.page.url

    async def findings(self) -> list[str]:
        """Return what axe finds wrong with the page that matters."""
        await self.page.evaluate(AXE.read_text("utf-8"))
        found: dict[str, Any] = await self.page.evaluate("axe.run({ iframes: false })")
        return [
            f"{each['id']}: {node['html']}"
            for each in found["violations"]
            if each["impact"] in SERIOUS
            for node in each["nodes"]
        ]

    async def measured(self) -> int:
        """Return how many bytes the pages so far had from Loop."""
        await asyncio.gather(*self._measured)
        return self.bytes_from_loop


@dataclass
class Street:
    """A merchant's shop with the processors it has, and the customers who come."""

    shop: Shop
    stub: StubProcessor
    browser: Browser
    serving: Running
    front: str
    """The address of the merchant's own pages."""

    @property
    def thanks(self) -> str:
        """How the address begins that customers who have paid come to."""
        return f"{self.front}/thanks?s="

    async def connect(self, *names: str) -> None:
        """Connect processors, the first of which is tried first."""
        for name in names:
            await self._manage("POST", f"/api/processors/{name}", {"credentials": CREDENTIALS[name]})
        await self.prefer(*names)

    async def prefer(self, *names: str) -> None:
        """Let orders go to these processors, in this order."""
        rules = (await self._manage("GET", "/api/routing-rules")).body
        for rule in rules["data"] if isinstance(rules, dict) else rules:
            await self._manage("DELETE", f"/api/routing-rules/{rule['id']}")
        wanted = {"name": "in order", "priority": 1, "conditions": {}, "processors": list(names)}
        await self._manage("POST", "/api/routing-rules", wanted)

    async def end(self, session: Mapping[str, Any], how: Literal["expire", "pay"]) -> None:
        """End a session by its time being up, or by the order being paid at the sandbox."""
        if how == "expire":
            ended = await self.shop.post(f"/v1/checkout/sessions/{session['id']}/expire")
        else:
            content = {"processor": "sandbox", "paymentMethod": {"type": "card", "token": "tok_approve"}}
            ended = await self.shop.post(f"/v1/orders/{(await self.order(session))['id']}/pay", content)
        assert ended.status == 200, ended.text

    async def _manage(self, method: str, path: str, content: object = None) -> Answer:
        answer = await self.shop.call(method, path, content, auth={"Authorization": f"Bearer {self.shop.token}"})
        assert answer.status in (200, 201, 204), answer.text
        return answer

    async def session(self, **changed: object) -> dict[str, Any]:
        """Make a checkout session."""
        wanted = {
            "amount": 4999,
            "currency": "EUR",
            "successUrl": f"{self.thanks}{{SESSION_ID}}",
            "cancelUrl": f"{self.front}/basket?s={{SESSION_ID}}",
            "customerEmail": "zoe@example.com",
            "lineItems": [{"name": "Tea & cake", "amount": 2000, "quantity": 2}, {"name": "Napkins", "amount": 999}],
            **changed,
        }
        answer = await self.shop.post("/v1/checkout/sessions", wanted)
        assert answer.status == 201, answer.text
        created: dict[str, Any] = answer.body
        return created

    async def order(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """Return the order of a session as it stands."""
        read = (await self.shop.get(f"/v1/checkout/sessions/{session['id']}")).body
        order: dict[str, Any] = (await self.shop.get(f"/v1/orders/{read['orderId']}")).body
        return order

    def paid_amounts(self) -> list[int]:
        """Return what the stand-in has charged, in minor units."""
        return [entry.amount_minor for entry in self.stub.ledger() if entry.kind in ("charge", "capture")]

    @asynccontextmanager
    async def customer(
        self, *, theme: Theme = "light", width: int = 360, has_script: bool = True, language: str = "en"
    ) -> AsyncIterator[BrowserContext]:
        """Let a customer come with a browser of their own, whose way to the processors leads to the stand-in."""
        context = await self.browser.new_context(
            viewport={"width": width, "height": 760},
            color_scheme=theme,
            java_script_enabled=has_script,
            locale=language,
        )
        context.set_default_timeout(15_000)
        await context.route("**/*", self._lead)
        if has_script:
            await context.add_init_script(WATCH_POLICY)
        yield context
        await context.unroute_all(behavior="wait")  # what is being led to the stand-in would lose its way
        await context.close()

    @asynccontextmanager
    async def visit(
        self, *, theme: Theme = "light", width: int = 360, has_script: bool = True, language: str = "en"
    ) -> AsyncIterator[Visit]:
        """Let a customer come with one window."""
        async with self.customer(theme=theme, width=width, has_script=has_script, language=language) as context:
            yield await self.window(context)

    async def window(self, context: BrowserContext) -> Visit:
        """Open a window in a customer's browser."""
        visit = Visit(await context.new_page())

        def hear(said: ConsoleMessage) -> None:
            if said.type == "error":
                visit.troubles.append(said.text)

        def weigh(response: Response) -> None:
            if response.url.startswith(self.serving.url) and response.status == 200:
                visit._measured.append(asyncio.ensure_future(_weigh(visit, response)))

        page = visit.page
        page.on("console", hear)
        page.on("pageerror", lambda error: visit.troubles.append(str(error)))
        page.on("response", weigh)
        return visit

    async def _lead(self, route: Route) -> None:
        url = route.request.url
        stub_url = at_stub(self.stub.url, url)
        if url.startswith((self.serving.url, self.stub.url, self.front)):
            await route.continue_()
        elif stub_url is not None:
            await route.fulfill(response=await route.fetch(url=stub_url))
        else:
            await route.abort()


async def _weigh(visit: Visit, response: Response) -> None:
    with suppress(Error):  # the window went on before it could be read
        visit.bytes_from_loop += len(await response.body())


@asynccontextmanager
async def new_street(browser: Browser, database_url: str, folder: Path) -> AsyncIterator[Street]:
    """Run a Loop of its own with a shop that has no processor yet; its files are in `folder`."""
    async with (
        StubProcessor(ledger_path=folder / "ledger") as stub,
        patient_session() as session,
        shop_front() as front,
    ):
        settings = load(
            {
                "data_dir": str(folder),
                "database_url": database_url,
                "jwt_secret": secrets.token_hex(32),
                "encryption_key": secrets.token_hex(32),
                "port": str(free_port()),
                "stripe_api_base": stub.url,
                "razorpay_api_base": stub.url,
                "log_level": "error",
            },
            {},
        )
        async with running(settings) as serving:
            yield Street(await open_shop(session, serving.url, serving.context), stub, browser, serving, front)


@asynccontextmanager
async def patient_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client session that waits as long as a busy machine needs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@asynccontextmanager
async def shop_front() -> AsyncIterator[str]:
    """Run the merchant's own pages; yield their address."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>Shop</title><h1>The shop</h1>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", show)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
