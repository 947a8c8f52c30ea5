"""The demo: Loop, a stand-in Stripe and a small shop, a few orders, and two ledgers that must agree."""

import asyncio
import secrets
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loop.cli_console import print_json
from loop.config import Settings, load
from loop.domain.errors import LoopError, configuration, unavailable
from loop.domain.money import Money
from loop.domain.roles import Role
from loop.runtime import running
from loop.storage.backups import look_at_postgres
from loop.storage.migrate import migrate
from loop.telemetry import configure
from loop.testing.demo_books import Books, close_books
from loop.testing.demo_orders import SCRIPTS, Script, Stage, Tale, play
from loop.testing.demo_roles import free_port, in_processes
from loop.testing.demo_shop import DemoError, JsonObject, LoopClient, Shop
from loop.testing.stub_psp import Endpoint, StubProcessor

STORY_S = 60.0
"""How long all orders together may take before the demo gives up, in seconds."""

REDIS_TRIES = 20
"""How often Redis is asked whether it is there: each time it has as long to answer as a request leaves it, not long."""

PLAIN_WIDTH = 100
"""Columns of the output when it goes to no terminal."""

LEFT_BEHIND = "The orders stay in the database; nobody has its keys any more, so drop it when you have looked."

STOPPED = 130
"""The exit code after Ctrl-C, as shells have it."""

STATUS_STYLES = {"captured": "green", "partially_refunded": "green", "failed": "red", "requires_action": "yellow"}

WORDS: Mapping[str, str] = {
    "order.created": "the shop asks for {amount}",
    "payment.processing": "attempt {attempt} at {processor}: {reasons}",
    "payment.requires_action": "the bank wants to hear from the customer",
    "payment.authorized": "{amountAuthorized} held",
    "payment.captured": "{amountCaptured} taken",
    "payment.failed": "{errorMessage} Its category: {declineCategory}.",
    "payment.cancelled": "nothing is taken, the hold is released",
    "refund.created": "{refundAmount} to give back",
    "refund.processed": "{refundAmount} given back",
}
"""What an event is in a timeline, with what its body carries."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What the processes of one Loop have in common: a PostgreSQL and a Redis, by their addresses."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)


def run_demo(*, keep: bool, port: int | None, shared: Shared | None = None, as_json: bool = False) -> int:
    """Tell the story; return 0 only if every order went as it must and all books agree.

    With `keep` everything is left serving afterwards, until Ctrl-C. `port` is Loop's, None takes a free one. Loop runs
    in this process on a SQLite file of its own, or with `shared` in a process for each of its roles. As JSON the story
    goes to standard error, and its end to standard output.
    Raises LoopError where Loop cannot start, `database_in_use` where it must not.
    """
    console = _console(as_json=as_json)
    directory = Path(tempfile.mkdtemp(prefix="loop-demo-"))
    is_worth_reading = True
    try:
        configure(level="info", log_format="json", log_file=directory / "loop.log")
        staging = staged(directory, port, shared=shared)
        code = asyncio.run(_tell(console, staging, keep=keep, shared=shared, as_json=as_json))
        is_worth_reading = code != 0
    except (BrokenPipeError, SystemExit):  # whoever read this has seen enough: Rich ends the program then
        is_worth_reading = False
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        is_worth_reading = False
        console.print("Stopped.")
        return STOPPED
    except LoopError:
        is_worth_reading = False
        raise
    except DemoError as error:
        console.print(f"The demo failed: {error}", style="bold red")
        return 1
    finally:
        if is_worth_reading:
            console.print(f"What Loop logged is in {directory}", soft_wrap=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return code


def _console(*, as_json: bool) -> Console:
    terminal = Console(highlight=False, markup=False, stderr=as_json)
    return (
        terminal if terminal.is_terminal else Console(highlight=False, markup=False, stderr=as_json, width=PLAIN_WIDTH)
    )


async def _tell(
    console: Console,
    staging: AbstractAsyncContextManager[Stage],
    *,
    keep: bool,
    shared: Shared | None,
    as_json: bool,
) -> int:
    this = asyncio.current_task()
    if this is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    started = time.perf_counter()
    async with staging as stage:
        for name, url in {**stage.addresses, "Stand-in Stripe": stage.stub.url, "Shop": stage.shop.url}.items():
            console.print(f"{name:16} {url}")
        tales = []
        try:
            async with asyncio.timeout(STORY_S):
                for script in SCRIPTS:
                    tales.append(await play(stage, script))
                    _show_tale(console, len(tales), script, tale=tales[-1])
                books = await close_books(stage, tales)
        except TimeoutError as error:
            raise DemoError(f"The orders took more than {STORY_S:g} s.") from error
        _show_books(console, books)
        if books.problems:
            console.print("\n".join(books.problems), style="bold red")
        else:
            took_s = time.perf_counter() - started
            console.print(f"All books agree: {len(tales)} orders in {took_s:.1f} s.", style="bold green")
        if as_json:
            print_json({"agrees": not books.problems, "orders": len(tales), "problems": list(books.problems)})
        if keep:
            stop = _told_to_stop()
            _show_what_to_try(console, stage, is_on_file=shared is None)
            await stop.wait()
    if shared is not None:
        console.print(LEFT_BEHIND)
    return 1 if books.problems else 0


def _told_to_stop() -> asyncio.Event:
    """Return what Ctrl-C and SIGTERM set from now on."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@asynccontextmanager
async def staged(directory: Path, port: int | None = None, *, shared: Shared | None = None) -> AsyncIterator[Stage]:
    """Run Loop for a merchant who has a Stripe account at the stand-in: on a new SQLite file in `directory`, or shared.

    No setting is read from the caller's environment. Raises DemoError, and LoopError where Loop cannot start.
    """
    async with AsyncExitStack() as stack:
        stub = await stack.enter_async_context(StubProcessor(ledger_path=directory / "processor.jsonl"))
        shop = await stack.enter_async_context(Shop())
        flags = {
            "data_dir": directory / "data",
            "port": port or free_port(),
            "stripe_api_base": stub.url,
            "webhook_allow_networks": "127.0.0.0/8",
        }
        if shared is None:
            serving = await stack.enter_async_context(running(load(flags, {})))
            url, addresses = serving.url, {"Loop": serving.url}
        else:
            settings = await _prepared(flags, shared)
            served = await stack.enter_async_context(in_processes(directory, settings))
            url, addresses = served[Role.API], {f"Loop's {role}": at for role, at in served.items()}
        client = await stack.enter_async_context(LoopClient(url))
        yield Stage(client, shop, stub, await _move_in(client, shop, stub), addresses)


async def _prepared(flags: Mapping[str, object], shared: Shared) -> Mapping[str, object]:
    """Return the settings of processes that share a database, which is empty and has its schema then.

    Raises `database_in_use` before anything is changed.
    """
    settings = {
        **flags,
        "database_url": shared.database_url,
        "redis_url": shared.redis_url,
        "jwt_secret": secrets.token_hex(32),
        "encryption_key": secrets.token_hex(32),
    }
    checked = load(settings, {})
    has_rows, _ = await look_at_postgres(checked.database_url)
    if has_rows:
        raise configuration(
            "database_in_use",
            "There are merchants or orders in the database, so the demo has changed nothing. Give it an empty one; "
            "`createdb` makes one.",
        )
    if not await _redis_answers(checked, shared.redis_url):
        raise unavailable("not_ready", "Redis does not answer: start it, or mend --redis-url.")
    await migrate(checked.database_url)
    return settings


async def _redis_answers(settings: Settings, url: str) -> bool:
    from loop.server.rate_limits import rates_of
    from loop.server.redis_limits import opened

    async with opened(url, rates_of(settings)) as limiter:
        for _ in range(REDIS_TRIES):
            if await limiter.redis_answers():
                return True
    return False


async def _move_in(loop: LoopClient, shop: Shop, stub: StubProcessor) -> str:
    """Do what a new merchant does once: register, name the webhook address, connect Stripe, make an API key."""
    person = {"name": "Demo shop", "email": "demo@example.com", "password": secrets.token_urlsafe(16)}
    loop.sign_in((await loop.post("/api/auth/register", person))["token"])
    shop.secret = (await loop.put("/api/merchants/me", {"webhookUrl": shop.webhook_url}))["webhookSecret"]
    stripe = {"secretKey": f"sk_test_{secrets.token_hex(16)}", "webhookSecret": f"whsec_{secrets.token_hex(16)}"}
    await loop.post("/api/processors/stripe", {"credentials": stripe})
    (config,) = await loop.get_list("/api/processors")
    stub.webhooks.endpoints.append(Endpoint(config["webhookUrl"], stripe["webhookSecret"]))
    key: str = (await loop.post("/api/api-keys", {"name": "demo", "mode": "test"}))["secret"]
    loop.use_key(key)
    return key


def _show_tale(console: Console, number: int, script: Script, *, tale: Tale) -> None:
    created_ms = _milliseconds(tale.order["createdAt"])
    events = sorted(tale.events, key=lambda event: (event["createdAt"], event["id"]))
    lines = [(_milliseconds(event["createdAt"]), event["status"], _words(event, tale)) for event in events]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", min_width=11, style="dim")
    grid.add_column(min_width=18)
    grid.add_column(overflow="fold")
    for at_ms, who, words in sorted([*lines, *tale.notes], key=lambda line: line[0]):
        grid.add_row(f"+{(at_ms - created_ms) / 1000:.3f} s", Text(who, style=STATUS_STYLES.get(who, "")), words)
    told = ", ".join(event["eventType"] for event in events)
    grid.add_row("", "webhooks", f"received and verified: {told}")
    console.print()
    console.print(Text(f"{number}. {script.title}", style="bold"), f"- {script.amount} - {tale.order['id']}")
    console.print(grid)


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def _words(event: JsonObject, tale: Tale) -> str:
    payload: JsonObject = event["payload"]
    amounts = {name: value for name, value in {**payload, "amount": event["amount"]}.items() if "mount" in name}
    money = {name: Money(value, event["currency"]) for name, value in amounts.items()}
    reasons = "; ".join(tale.routing.get(payload.get("attempt", 0), ()))
    known = {**payload, **money, "processor": event["processor"], "reasons": reasons}
    return WORDS.get(event["eventType"], event["eventType"]).format_map(known)


def _show_books(console: Console, books: Books) -> None:
    ledger = Table("Movement", title="\nMoney that moved", title_justify="left", title_style="bold")
    for heading in ("Loop's books", "Processor's books"):
        ledger.add_column(heading, justify="right")
    ledger.add_column("Agree")
    for line in books.ledger:
        ours, theirs = f"{line.loop_count} x {line.loop_sum}", f"{line.processor_count} x {line.processor_sum}"
        ledger.add_row(line.kind, ours, theirs, _yes_or_no(line.is_equal))
    console.print(ledger)
    events = Table("Webhook", title="\nWebhooks to the shop", title_justify="left", title_style="bold")
    for heading in ("Recorded by Loop", "Verified by the shop"):
        events.add_column(heading, justify="right")
    events.add_column("Agree")
    for telling in books.events:
        counts = (str(telling.recorded), str(telling.verified))
        events.add_row(telling.event_type, *counts, _yes_or_no(telling.is_equal))
    console.print(events)
    console.print(f"Loop took {books.inbound_count} webhooks from the processor.")


def _yes_or_no(is_equal: bool) -> Text:
    return Text("yes", style="green") if is_equal else Text("NO", style="bold red")


def _show_what_to_try(console: Console, stage: Stage, *, is_on_file: bool) -> None:
    order = "order=$({} | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"id\"])')".format(
        _curl(stage, "/v1/orders", '{"amount": 4999, "currency": "USD"}')
    )
    pay = _curl(stage, "/v1/orders/ORDER/pay", '{"paymentMethod": {"type": "card", "token": "pm_card_visa"}}')
    for line in (
        f"\nLoop    {stage.loop.url}",
        f"API key {stage.api_key} (of this demo only)",
        "Try, in another terminal:",
        f"  {order}",
        f"  {pay.replace('/ORDER/', '/$order/')}",
        "Other tokens: pm_card_chargeDeclined, pm_card_authenticationRequired, pm_card_timeoutThenCharged",
        "Ctrl-C ends it and removes everything." if is_on_file else "Ctrl-C ends it.",
    ):
        console.print(line, soft_wrap=True)


def _curl(stage: Stage, path: str, body: str) -> str:
    headers = ("-H", f"X-API-Key: {stage.api_key}", "-H", "Content-Type: application/json")
    return shlex.join(["curl", "-sS", stage.loop.url + path, *headers, "-d", body])
