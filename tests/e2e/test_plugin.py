"""A processor that is not Loop's own: built, installed, found by its entry point, paid with; and its guide is true."""

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from acme_pay import API_KEY, AcmePay, sign

from loop.testing.demo_shop import DemoError, JsonObject, LoopClient

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "acme-processor"
GUIDE = ROOT / "docs" / "guides" / "write-a-processor.md"

COMMAND_S = 120.0
"""Bounds a hang of pip or pytest; each takes a few seconds on an idle machine."""

STARTED_WITHIN_S = 30.0
SETTLED_WITHIN_S = 15.0
"""Longest wait for an order whose first answer was lost: it is asked about again after two seconds."""

ASK_EVERY_S = 0.1
SECRET = "whsec_acme"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the example beside the running interpreter's packages, from its sources alone and without a network."""
    site = tmp_path_factory.mktemp("site")
    options = ("--isolated", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
               "--no-build-isolation")  # fmt: skip
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    run("pip", "install", *options, "--target", str(site), str(EXAMPLE), environment=kept)
    assert {path.name for path in site.iterdir() if path.suffix == ".py"} == {"acme_processor.py"}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [str(site), kept.get("PYTHONPATH")]))}


def run(module: str, *arguments: str, environment: dict[str, str], folder: Path | None = None) -> str:
    """Run a module without its working directory on the path; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_passes_its_own_tests(environment: dict[str, str]) -> None:
    told = run("pytest", "-q", "-rs", "-p", "no:cacheprovider", environment=environment, folder=EXAMPLE)
    assert set(re.findall(r"SKIPPED \[\d+\] .*: (.*)", told)) == {"the processor tells of no disputes"}
    counted = re.fullmatch(r"(\d+) passed, \d+ skipped in .*", told.splitlines()[-1])
    assert counted, told
    assert int(counted[1]) > 50


@asynccontextmanager
async def serving(environment: dict[str, str], folder: Path) -> AsyncIterator[LoopClient]:
    """Run `loop serve` and yield a client of it; told to end, it must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = folder / "said"
    with said.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "loop", "serve", "--port", str(port)),
            env={**environment, "LOOP_DATA_DIR": str(folder / "data")},
            stdout=output,
            stderr=output,
        )
    try:
        async with LoopClient(f"http://127.0.0.1:{port}") as loop:
            await until(lambda: answers(loop), STARTED_WITHIN_S)
            yield loop
    finally:
        process.terminate()
        code = await process.wait()
    assert code == 0, said.read_text("utf-8")


async def until(is_so: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if await is_so():
                return
            await asyncio.sleep(ASK_EVERY_S)


async def answers(loop: LoopClient) -> bool:
    try:
        await loop.get("/health")
    except DemoError:
        return False
    return True


async def move_in(loop: LoopClient) -> str:
    """Register as a merchant who has an account at Acme Pay; return the address for its webhooks."""
    person = {"name": "Shop", "email": "shop@example.com", "password": "correct horse battery"}
    loop.sign_in((await loop.post("/api/auth/register", person))["token"])
    with pytest.raises(DemoError, match="invalid_credentials_fields"):
        await loop.post("/api/processors/acme", {"credentials": {"secretKey": API_KEY}})
    credentials = {"apiKey": API_KEY, "webhookSecret": SECRET}
    config = await loop.post("/api/processors/acme", {"credentials": credentials})
    loop.use_key((await loop.post("/api/api-keys", {"name": "shop", "mode": "test"}))["secret"])
    return str(config["webhookUrl"])


async def paid(loop: LoopClient, card: str) -> JsonObject:
    """Create an order, pay it with a card of Acme Pay's and return the answer."""
    order = await loop.post("/v1/orders", {"amount": 4999, "currency": "USD"})
    method = {"type": "card", "token": card}
    return await loop.post(f"/v1/orders/{order['id']}/pay", {"paymentMethod": method})


async def settled(loop: LoopClient, order_id: str, status: str) -> JsonObject:
    """Return the order once it has this status."""

    async def is_there() -> bool:
        return bool((await loop.get(f"/v1/orders/{order_id}"))["status"] == status)

    await until(is_there, SETTLED_WITHIN_S)
    return await loop.get(f"/v1/orders/{order_id}")


async def deliver(url: str, body: bytes, secret: str) -> int:
    """Send a webhook as Acme Pay does; return the status it is answered with."""
    headers = sign(body, secret, datetime.fromtimestamp(time.time_ns() / 1e9, UTC))
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status


async def test_orders_are_paid_through_its_entry_point(environment: dict[str, str], tmp_path: Path) -> None:
    async with AcmePay() as acme, serving({**environment, "ACME_API_BASE": acme.url}, tmp_path) as loop:
        webhook_url = await move_in(loop)

        done = await paid(loop, "card_ok")
        assert (done["status"], done["processor"]) == ("captured", "acme")
        assert [(row.kind, row.amount, row.currency) for row in acme.ledger] == [("charge", 4999, "USD")]

        refund = await loop.post(f"/v1/orders/{done['orderId']}/refund", {"amount": 1000})
        assert refund["status"] == "pending"
        assert [(row.kind, row.amount) for row in acme.ledger[1:]] == [("refund", 1000)]

        declined = await paid(loop, "card_no_funds")
        assert (declined["status"], declined["declineCategory"]) == ("failed", "later")

        lost = await paid(loop, "card_lost_after")
        assert lost["status"] == "processing"
        await settled(loop, lost["orderId"], "captured")

        asked = await paid(loop, "card_3ds")
        assert asked["status"] == "requires_action"
        payment_id = asked["redirectUrl"].rpartition("/")[2]
        acme.customer_pays(payment_id)
        assert await deliver(webhook_url, acme.event(payment_id), "whsec_of_a_stranger") == 400
        assert await deliver(webhook_url, acme.event(payment_id), SECRET) == 200
        assert (await settled(loop, asked["orderId"], "captured"))["processorOrderId"] == payment_id

        assert sorted(row.kind for row in acme.ledger) == ["charge", "charge", "charge", "refund"]


def test_the_guide_shows_the_example_as_it_is() -> None:
    guide = GUIDE.read_text("utf-8")
    shown: dict[str, list[str]] = {}
    for name, code in re.findall(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL):
        assert code in (EXAMPLE / name).read_text("utf-8"), f"{name} has no such lines any more:\n{code}"
        shown.setdefault(name, []).append(code)
    processor = (EXAMPLE / "acme_processor.py").read_text("utf-8")
    assert "".join(shown["acme_processor.py"]).split() == processor.split(), "the guide leaves something out"
    assert {"pyproject.toml", "tests/test_acme_processor.py"} <= shown.keys()
