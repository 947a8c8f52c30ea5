"""The commands about orders, processors, webhooks, events, jobs and exports, on both databases."""

import csv
import io
import json
import socket

import pytest

from loop import cli_export
from loop.cli_console import run_work
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.workflows.context import Context
from tests.e2e.shells import Desk


def test_an_order_is_paid_captured_and_refunded(desk: Desk, shop: str) -> None:
    order = desk.order(shop, is_manual_capture=True)
    paid = desk.json("order", "pay", order, "--token", "tok_approve")
    assert (paid["status"], paid["processor"]) == ("authorized", "sandbox")
    too_much = desk.run("order", "capture", order, "--amount", "5000")
    assert (too_much.code, too_much.err.split(":")[0]) == (3, "capture_exceeds_authorized")
    assert desk.json("order", "capture", order, "--amount", "3000")["amountCaptured"] == 3000
    refund = desk.json("order", "refund", order, "--amount", "1000", "--reason", "broken")
    assert (refund["status"], refund["amount"], refund["orderId"]) == ("success", 1000, order)
    assert "partially_refunded" in desk.ok("order", "show", order)
    assert desk.run("order", "cancel", order).code == 3
    assert "1000" in desk.ok("audit", "list", "--merchant", shop)


def test_an_order_is_declined_tried_again_and_cancelled(desk: Desk, shop: str) -> None:
    order = desk.order(shop)
    ended = desk.run("order", "pay", order, "--token", "tok_decline_insufficient_funds", "--json")
    declined = json.loads(ended.out)
    assert (ended.code, declined["status"], declined["errorCode"]) == (10, "failed", "insufficient_funds")
    refused = desk.run("order", "pay", order, "--token", "tok_approve")
    assert (refused.code, "`retry`" in refused.err) == (3, True)
    again = desk.json("order", "pay", order, "--token", "tok_approve", "--retry", "--processor", "sandbox")
    assert again["status"] == "captured"
    other = desk.order(shop)
    assert desk.ok("order", "cancel", other, "--reason", "out of stock") == f"{other}  49.99 USD  cancelled\n"
    assert desk.run("order", "pay", "ord_nothing").code == 5
    assert desk.run("order", "cancel", order, "--not-charged", "--reason", "not in their dashboard").code == 3


def test_orders_are_filtered_and_paged(desk: Desk, shop: str) -> None:
    made = [desk.order(shop, amount, customer_email=f"{amount}@example.com") for amount in (100, 200, 300)]
    desk.ok("order", "pay", made[1], "--token", "tok_approve")

    def listed(*options: str) -> list[str]:
        return [row["id"] for row in desk.json("order", "list", shop, *options)]

    assert listed() == made[::-1]
    assert listed("--limit", "2") == made[:0:-1]
    assert listed("--after", made[1]) == made[:1]
    assert listed("--status", "captured") == listed("--processor", "sandbox") == [made[1]]
    assert listed("--email", "300@example.com") == [made[2]]
    assert listed("--from", "2020-01-01", "--to", "2020-01-02T03:04:05") == []
    assert listed("--live") == listed("--review") == listed("--currency", "eur") == []
    assert desk.run("order", "list", shop, "--status", "paid").code == 3
    assert desk.run("order", "list", shop, "--processor", "nonsense").code == 3
    assert desk.run("order", "list", shop, "--after", "nonsense").code == 5


def test_processors_are_tried_and_removed(desk: Desk, shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("STRIPE_API_BASE", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    (tried,) = desk.json("processor", "test", shop)
    assert (tried["processor"], tried["works"], tried["problem"]) == ("sandbox", True, None)
    set_up = desk.json("processor", "set", shop, "stripe", piped='{"secretKey": "sk_test_canary1"}')
    assert (set_up["processor"], set_up["testMode"]) == ("stripe", True)
    failed = desk.run("processor", "test", shop, "stripe", "--json")
    (row,) = json.loads(failed.out)
    assert (failed.code, row["works"]) == (1, False)
    assert "canary" not in failed.out
    assert desk.run("processor", "test", shop, "razorpay").code == 5
    removed = desk.ok("processor", "remove", shop, "stripe", "--test")
    assert removed == "The test account at stripe takes no new payments.\n"
    assert [each["processor"] for each in desk.json("processor", "list", shop)] == ["sandbox"]
    assert desk.run("processor", "remove", shop, "stripe").code == 5


def test_of_a_live_and_a_test_account_none_is_removed_unnamed(desk: Desk, shop: str) -> None:
    said = desk.ok("processor", "set", shop, "stripe", "--live", piped='{"secretKey": "sk_live_canary1"}')
    assert said.startswith("The live account at stripe is set (pcf_")
    desk.ok("processor", "set", shop, "stripe", piped='{"secretKey": "sk_test_canary1"}')
    refused = desk.run("processor", "remove", shop, "stripe")
    assert (refused.code, refused.out) == (3, "")
    assert "a test one and a live one" in refused.err
    assert len(desk.json("processor", "list", shop)) == 3
    removed = desk.json("processor", "remove", shop, "stripe", "--live")
    assert (removed["processor"], removed["testMode"]) == ("stripe", False)
    assert "The test account" in desk.ok("processor", "remove", shop, "stripe"), "of one there is no doubt"


def test_webhooks_are_set_up_sent_again_and_taken_away(desk: Desk, shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOP_WEBHOOK_ALLOW_NETWORKS", "127.0.0.0/8")
    unknown = desk.run("webhook", "add", shop, "http://127.0.0.1:9/hook", "--event", "payment.lost")
    assert (unknown.code, "payment.captured" in unknown.err) == (3, True)
    added = desk.json("webhook", "add", shop, "http://127.0.0.1:9/hook", "--event", "payment.captured")
    endpoint = added["id"]
    assert added["secret"].startswith("whsec_")
    (row,) = desk.json("webhook", "list", shop)
    assert (row["id"], row["events"], "secret" in row) == (endpoint, ["payment.captured"], False)
    rotated = desk.json("webhook", "rotate", shop, endpoint)
    assert rotated["pendingSecret"] not in {None, added["secret"]}
    assert desk.run("webhook", "rotate", shop, endpoint).err.startswith("secret_pending")
    desk.ok("webhook", "promote", shop, endpoint)
    desk.ok("order", "pay", desk.order(shop), "--token", "tok_approve")
    (waiting,) = desk.json("webhook", "deliveries", shop, "--status", "pending")
    assert (waiting["endpointId"], waiting["eventType"]) == (endpoint, "payment.captured")
    place = f"{waiting['eventId']}:{waiting['endpointId']}"
    assert desk.json("webhook", "deliveries", shop, "--after", place) == []
    trial = desk.json("webhook", "test", shop, endpoint)["id"]
    (after,) = desk.json("webhook", "deliveries", shop, "--after", f"{trial}:{endpoint}")
    assert after["eventId"] == waiting["eventId"]
    assert desk.run("webhook", "deliveries", shop, "--after", "nonsense").code == 5
    shown = desk.json("event", "show", shop, trial)
    assert (shown["event"]["eventType"], shown["deliveries"][0]["endpointId"]) == ("endpoint.tested", endpoint)
    assert desk.json("webhook", "replay", shop, endpoint, "--event", waiting["eventId"])["replayed"] == 1
    assert desk.json("webhook", "replay", shop, endpoint, "--from", "2020-01-01") == {"replayed": 0, "hasMore": False}
    assert desk.run("webhook", "replay", shop, endpoint).code == 3
    desk.ok("webhook", "remove", shop, endpoint)
    assert desk.json("webhook", "list", shop) == []


def test_events_are_listed_and_shown(desk: Desk, shop: str) -> None:
    order = desk.order(shop)
    desk.ok("order", "pay", order, "--token", "tok_approve")
    rows = desk.json("event", "list", shop)
    assert [row["eventType"] for row in rows] == ["payment.captured", "payment.processing", "order.created"]
    assert {row["orderId"] for row in rows} == {order}
    after = desk.json("event", "list", shop, "--after", rows[0]["id"], "--limit", "1", "--test")
    assert [row["id"] for row in after] == [rows[1]["id"]]
    assert desk.json("event", "list", shop, "--live") == []
    assert desk.run("event", "list", shop, "--after", "nonsense").code == 5
    assert '"eventType": "payment.captured"' in desk.ok("event", "show", shop, rows[0]["id"])
    assert desk.run("event", "show", shop, "evt_nothing").code == 5


def insert_job(number: int, *, is_dead: bool) -> str:
    async def work(context: Context) -> str:
        name = f"job_{number}"
        now = context.now()
        job = Job(
            id=name, kind="test.kind", subject=f"thing_{number}", arguments={"number": number}, dedupe_key=name,
            lane=name, run_at=now, fence=0, failures=20, is_leased=False, is_dead=is_dead, last_error="it did not work",
            correlation_id=None, created_at=now,
        )  # fmt: skip
        async with context.database.transaction() as session:
            await session.run_together([jobs.insertion(job)])
        return name

    return run_work(work)


def test_dead_jobs_are_found_and_tried_again(desk: Desk) -> None:
    dead, other = insert_job(1, is_dead=True), insert_job(2, is_dead=True)
    due = insert_job(3, is_dead=False)
    rows = desk.json("jobs", "list")
    assert [(row["id"], row["state"]) for row in rows] == [(dead, "dead"), (other, "dead"), (due, "due")]
    assert [row["id"] for row in desk.json("jobs", "list", "--state", "dead", "--limit", "1")] == [dead]
    assert [row["id"] for row in desk.json("jobs", "list", "--after", dead)] == [other, due]
    assert [row["id"] for row in desk.json("jobs", "list", "--after", other, "--kind", "test.kind")] == [due]
    assert desk.json("jobs", "list", "--after", due) == []
    assert (
        desk.json("jobs", "list", "--state", "running") == desk.json("jobs", "list", "--kind", "deliver_webhooks") == []
    )
    unknown = desk.run("jobs", "list", "--kind", "other")
    assert (unknown.code, "advance_payment" in unknown.err) == (3, True)
    assert desk.run("jobs", "list", "--after", "nonsense").code == 5
    assert desk.run("jobs", "list", "--state", "lost").code == 3
    shown = desk.json("jobs", "show", dead)
    assert (shown["lastError"], shown["arguments"], shown["failures"]) == ("it did not work", {"number": 1}, 20)
    assert desk.json("jobs", "revive", dead) == {"revived": 1}
    assert desk.run("jobs", "revive", dead).code == desk.run("jobs", "show", "job_9").code == 5
    assert desk.ok("jobs", "revive", "--kind", "test.kind") == "1 jobs are due again.\n"
    assert desk.run("jobs", "revive").code == 3
    assert {row["state"] for row in desk.json("jobs", "list")} == {"due"}
    assert desk.ok("audit", "list").count("job.revived") == 2


def test_books_are_exported_page_by_page(desk: Desk, shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_export, "ROWS_AT_ONCE", 2)
    made = [desk.order(shop, amount, description="=1+1") for amount in (100, 200, 300, 400, 500)]
    for order in made:
        desk.ok("order", "pay", order, "--token", "tok_approve")
    rows = [*csv.DictReader(io.StringIO(desk.ok("export", "orders", shop)))]
    assert [row["id"] for row in rows] == made[::-1]
    assert (rows[0]["amount"], rows[0]["description"], rows[0]["status"]) == ("5.00", "'=1+1", "captured")
    lines = [json.loads(line) for line in desk.ok("export", "orders", shop, "--json").splitlines()]
    newest_first = [*zip(made[::-1], (500, 400, 300, 200, 100), strict=True)]
    assert [(line["id"], line["amount"]) for line in lines] == newest_first
    moved = [json.loads(line) for line in desk.ok("export", "transactions", shop, "--json").splitlines()]
    assert [(each["orderId"], each["type"], each["amount"]) for each in moved] == [
        (order, "capture", amount) for order, amount in newest_first
    ]
    assert desk.ok("export", "transactions", shop, "--from", "2020-01-01").count("\n") == 6
    nobody = desk.run("export", "transactions", "nobody@example.com")
    assert (nobody.code, nobody.out) == (5, "")
    for nothing in (("--live",), ("--to", "2020-01-01")):
        assert desk.ok("export", "orders", shop, *nothing).count("\n") == 1
        assert desk.ok("export", "transactions", shop, *nothing).count("\n") == 1
