"""Metrics: what `/metrics` answers and to whom, read as Prometheus reads it, and that it counts what happened."""

from dataclasses import dataclass
from datetime import timedelta
from math import isnan

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loop import metrics
from loop.domain.attempts import Unknown
from loop.metrics import DECLARED
from loop.runtime import Running
from loop.storage import jobs
from loop.workflows import vitals
from tests.api.client import Shop
from tests.builders import job

TOKEN = "reads the metrics 0123456789abcdef"

PAID = {"method": "POST", "route": "/v1/orders/{order_id}/pay", "status": "200"}


@pytest.fixture
def flags() -> dict[str, object]:
    return {"metrics_token": TOKEN}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every look see what is true then; that figures are kept for a while has a test of its own."""
    monkeypatch.setattr(vitals, "KEPT_S", 0.0)


@dataclass(frozen=True)
class Scrape:
    """One answer of `/metrics`, by the parser of Prometheus' own library."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def of(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def labels_of(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for each, labels in self.samples if each == name]


async def scrape(shop: Shop) -> Scrape:
    async with shop.session.get(f"{shop.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE_LATEST
        text = await answer.text()
    families = list(text_string_to_metric_families(text))
    return Scrape({(each.name, frozenset(each.labels.items())): each.value for f in families for each in f.samples})


async def test_a_payment_is_counted_once_in_each_figure_about_it(shop: Shop) -> None:
    before = await scrape(shop)
    await shop.paid_order(amount=4999, currency="USD")
    await shop.paid_order(card="tok_decline_insufficient_funds", amount=100, currency="USD")
    after = await scrape(shop)

    def more(name: str, **labels: str) -> float:
        return after.of(name, **labels) - before.of(name, **labels)

    about = {"processor": "sandbox", "mode": "test"}
    assert more("loop_routing_decisions_total", **about, by="default") == 2
    assert more("loop_payment_outcomes_total", **about, status="captured", decline_class="") == 1
    assert more("loop_captured_minor_units_total", **about, currency="USD") == 4999
    call = {"processor": "sandbox", "operation": "authorize"}
    assert more("loop_processor_call_seconds_count", **call, outcome="approved") == 1
    assert more("loop_processor_call_seconds_count", **call, outcome="declined") == 1
    assert more("loop_http_request_seconds_count", **PAID) == 2
    assert more("loop_http_request_seconds_bucket", **PAID, le="+Inf") == 2
    assert more("loop_job_run_seconds_count", kind="advance_payment", result="ended") == 2
    declined = [
        labels
        for labels in after.labels_of("loop_payment_outcomes_total")
        if labels["status"] == "failed" and more("loop_payment_outcomes_total", **labels) == 1
    ]
    assert [labels["decline_class"] for labels in declined] == ["later"]


async def test_a_refund_is_counted(shop: Shop) -> None:
    order = await shop.paid_order(amount=4999, currency="USD")
    before = await scrape(shop)
    answer = await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 1000})
    assert answer.status in (200, 201), answer.text
    after = await scrape(shop)
    about = {"processor": "sandbox", "mode": "test"}
    for name, labels, by in (
        ("loop_refund_outcomes_total", {**about, "status": "succeeded"}, 1),
        ("loop_refunded_minor_units_total", {**about, "currency": "USD"}, 1000),
    ):
        assert after.of(name, **labels) - before.of(name, **labels) == by


async def test_what_strangers_make_up_adds_no_series(shop: Shop) -> None:
    before = await scrape(shop)
    for number in range(5):
        await shop.get(f"/v1/made-up-{number}")
        async with shop.session.request(f"MADE{number}", f"{shop.url}/v1/orders") as answer:
            assert answer.status >= 400
        async with shop.session.post(f"{shop.url}/webhooks/made-up-{number}", data=b"{}") as answer:
            assert answer.status == 404
    after = await scrape(shop)
    labels = after.labels_of("loop_http_request_seconds_count")
    assert {"method": "GET", "route": "unmatched", "status": "404"} in labels
    told = str(sorted(after.samples.keys() - before.samples.keys(), key=str))
    assert "made-up" not in told
    assert "MADE" not in told
    named = [{each["processor"] for each in seen.labels_of("loop_processor_events_total")} for seen in (before, after)]
    assert named[1] - named[0] <= {"sandbox", "stripe", "razorpay"}
    assert shop.merchant.id not in str(after.samples)


async def test_what_waits_is_read_from_the_database(shop: Shop, served: Running) -> None:
    now = served.context.now()
    late = job("late", kind="nobody_does_this", run_at=now - timedelta(minutes=10))
    dead = job("dead", kind="nobody_does_this", is_dead=True, run_at=now)
    await served.context.database.write_at_once([jobs.insertion(late), jobs.insertion(dead)])
    found = await scrape(shop)
    assert found.of("loop_jobs_due", kind="nobody_does_this") == 1
    assert 590 < found.of("loop_jobs_oldest_due_seconds", kind="nobody_does_this") < 700
    assert found.of("loop_jobs_dead", kind="nobody_does_this") == 1
    assert found.of("loop_database_up") == 1
    kind = "sqlite" if served.context.settings.is_sqlite else "postgres"
    assert [each["database"] for each in found.labels_of("loop_build_info") if each["database"] == kind]
    if kind == "postgres":
        assert found.of("loop_database_connections", state="in_use") >= 0
        assert found.of("loop_database_connections", state="free") <= served.context.settings.database_pool_size


async def test_an_open_circuit_is_shown_by_its_processors_name(shop: Shop, served: Running) -> None:
    config_id = await shop.use_sandbox()
    for _ in range(20):
        served.context.breakers.hear(config_id, Unknown("no answer"), now=served.context.now())
    assert (await scrape(shop)).of("loop_circuits_open", processor="sandbox") == 1


async def test_figures_of_the_database_are_kept_for_a_moment(
    shop: Shop, served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "KEPT_S", 60.0)
    await scrape(shop)
    dead = job("dead", kind="died_since", is_dead=True)
    await served.context.database.write_at_once([jobs.insertion(dead)])
    assert (await scrape(shop)).of("loop_jobs_dead", kind="died_since") == 0


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_counters_are_answered_while_the_database_is_away(shop: Shop, served: Running) -> None:
    assert (await scrape(shop)).of("loop_database_up") == 1
    await served.context.database.close()
    found = await scrape(shop)
    assert found.of("loop_database_up") == 0
    assert isnan(found.of("loop_orders_in_review"))
    assert found.of("loop_http_request_seconds_count", method="GET", route="/metrics", status="200") >= 1


@pytest.mark.parametrize("given", ["", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"])
async def test_nobody_else_may_read_them(shop: Shop, given: str) -> None:
    headers = {"Authorization": given} if given else {}
    async with shop.session.get(f"{shop.url}/metrics", headers=headers) as answer:
        assert answer.status == 401
        assert (await answer.json())["code"] == "metrics_token_needed"
    async with shop.session.get(f"{shop.url}/metrics", headers={"X-API-Key": shop.key}) as answer:
        assert answer.status == 401


class TestWithoutToken:
    @pytest.fixture
    def flags(self) -> dict[str, object]:
        return {}

    async def test_there_is_nothing(self, shop: Shop) -> None:
        for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
            async with shop.session.get(f"{shop.url}/metrics", headers=headers) as answer:
                assert answer.status == 404


def test_every_metric_says_what_it_is_and_has_few_labels() -> None:
    assert len({each.name for each in DECLARED}) == len(DECLARED)
    for each in DECLARED:
        assert each.about.endswith("."), each.name
        assert len(each.labels) <= 4
        assert not [label for label in each.labels if label.endswith("_id")]
        assert each.name.endswith("_total") is (each.kind == "counter")
