"""A stand-in payment processor: a local HTTP server that official SDKs talk to by base URL alone."""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from aiohttp import web

from loop.testing.stub_books import Books
from loop.testing.stub_browser import BrowserFace
from loop.testing.stub_control import ControlPlane, Handler, RequestLog
from loop.testing.stub_faults import FaultPlan
from loop.testing.stub_ledger import LedgerEntry, Store, new_object_id, read_ledger
from loop.testing.stub_razorpay import RazorpayFace
from loop.testing.stub_razorpay_customer import RazorpayCustomer
from loop.testing.stub_stripe import StripeFace
from loop.testing.stub_stripe_customer import StripeCustomer
from loop.testing.stub_webhooks import Endpoint, Webhooks

__all__ = ["Endpoint", "LedgerEntry", "StubProcessor", "main", "read_ledger"]

HOST = "127.0.0.1"
"""The only address the stand-in listens on."""

BODY_BYTES_MAX = 1 << 20
SHUTDOWN_S = 1.0
"""How long running requests may take to end when the stub stops, in seconds."""


class StubProcessor:
    """The server: `async with StubProcessor(ledger_path=…) as stub: stub.url`.

    A stub started again on the same file knows every account, intent, idempotency key and money row of before.
    """

    def __init__(
        self,
        *,
        ledger_path: Path | str,
        port: int = 0,
        endpoints: Sequence[Endpoint] = (),
        clock_ns: Callable[[], int] = time.time_ns,
        new_id: Callable[[str], str] = new_object_id,
    ) -> None:
        self.ledger_path = Path(ledger_path)
        self.url = ""
        self.faults = FaultPlan()
        self.requests = RequestLog()
        self._port = port
        self._endpoints = endpoints
        self._clock_ns = clock_ns
        self._new_id = new_id

    async def __aenter__(self) -> Self:
        """Open the ledger and listen; OSError when the port is taken."""
        self.store = Store(self.ledger_path, clock_ns=self._clock_ns, new_id=self._new_id)
        self.webhooks = Webhooks(self.store, self._endpoints)
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        try:
            await self.webhooks.start()
            await self._runner.setup()
            await web.TCPSite(self._runner, HOST, self._port).start()
        except BaseException:
            await self.__aexit__()
            raise
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, end deliveries, close the ledger."""
        await self._runner.cleanup()
        await self.webhooks.close()
        self.store.close()

    def ledger(self) -> list[LedgerEntry]:
        """Return the money rows so far, oldest first."""
        return list(self.store.entries)

    def _app(self) -> web.Application:
        razorpay = RazorpayFace(self.store, self.faults, webhooks=self.webhooks)
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._note_request, razorpay.divert])
        ControlPlane(self.store, self.faults, webhooks=self.webhooks, requests=self.requests).add_to(app)
        Books(self.store).add_to(app)
        # Each processor the stub stands in for is a face; where two have the same path, the key decides.
        at_razorpay, at_stripe = RazorpayCustomer(self.store, self.webhooks), StripeCustomer(self.store, self.webhooks)
        at_razorpay.add_to(app)
        at_stripe.add_to(app)
        BrowserFace(at_stripe, at_razorpay).add_to(app)
        StripeFace(self.store, self.faults, webhooks=self.webhooks).add_to(app)
        return app

    @web.middleware
    async def _note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.note(request, self.store.now_ms())
        return await handler(request)


async def _serve(port: int, ledger: Path) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    async with StubProcessor(ledger_path=ledger, port=port) as stub:
        sys.stdout.write(json.dumps({"url": stub.url}) + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM: `python -m loop.testing.stub_psp --port 0 --ledger FILE` prints one line with the URL."""
    parser = argparse.ArgumentParser(prog="python -m loop.testing.stub_psp", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--ledger", type=Path, required=True, help="file to keep the ledger in")
    chosen = parser.parse_args(arguments)
    asyncio.run(_serve(chosen.port, chosen.ledger))


if __name__ == "__main__":
    main()
