"""Dashboards, alerts and runbooks speak of metrics that there are, and of each other."""

import json
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import yaml

from loop.metrics import DECLARED

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
RUNBOOKS = ROOT / "docs" / "guides" / "runbooks.md"

SERIES = {
    f"{each.name}{end}": each
    for each in DECLARED
    for end in (("_bucket", "_count", "_sum") if each.kind == "histogram" else ("",))
}
"""Each series by its name, with the metric that it belongs to."""

OF_PROMETHEUS = {"le", "instance", "job"}
"""Labels that Prometheus itself knows or adds."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text("utf-8"))["groups"] for rule in group["rules"]]


def of_grafana() -> list[str]:
    panels = json.loads((ROOT / "deploy" / "grafana" / "loop.json").read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def of_openobserve() -> list[str]:
    tabs = json.loads((ROOT / "deploy" / "openobserve" / "loop.json").read_text("utf-8"))["tabs"]
    return [query["query"] for tab in tabs for panel in tab["panels"] for query in panel["queries"]]


def promtool(task: str, path: Path) -> None:
    done = subprocess.run(["promtool", task, "rules", str(path)], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stdout + done.stderr


with_promtool = pytest.mark.skipif(which("promtool") is None, reason="Prometheus' own tool is not installed")

QUESTIONS = [*(rule["expr"] for rule in rules()), *of_grafana(), *of_openobserve()]


@pytest.mark.parametrize("question", sorted(set(QUESTIONS)))
def test_every_series_asked_for_is_one_and_has_the_labels(question: str) -> None:
    named = set(re.findall(r"\bloop_[a-z_]+", question))
    assert named - SERIES.keys() == set()
    known = {label for name in named for label in SERIES[name].labels} | OF_PROMETHEUS
    asked = set(re.findall(r"(\w+)\s*=~?\"", question))
    for group in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", question):
        asked |= {label.strip() for label in group.split(",")}
    assert asked - known == set()


def test_the_dashboards_ask_for_every_metric() -> None:
    for questions in (of_grafana(), of_openobserve()):
        asked = {SERIES[name].name for each in questions for name in re.findall(r"\bloop_[a-z_]+", each)}
        assert {each.name for each in DECLARED} - asked == set()


def test_each_alert_has_its_page_and_each_page_its_alert() -> None:
    pages = re.findall(r"^## (Loop\w+)$", RUNBOOKS.read_text("utf-8"), re.MULTILINE)
    assert pages == [rule["alert"] for rule in rules()]
    for rule in rules():
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ROOT / path == RUNBOOKS
        assert anchor == rule["alert"].lower()
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("critical", "warning")


PAID = 'loop_payment_outcomes_total{processor="stripe", mode="live", status="captured", decline_class=""}'
FAILED = 'loop_payment_outcomes_total{processor="stripe", mode="live", status="failed", decline_class="tech"}'
CALLED = 'loop_processor_call_seconds_count{processor="stripe", operation="authorize", outcome="approved"}'
UNHEARD = 'loop_processor_call_seconds_count{processor="stripe", operation="authorize", outcome="unknown"}'
SERVED = 'loop_http_request_seconds_count{instance="a", method="GET", route="/v1/orders", status="200"}'
BROKEN = 'loop_http_request_seconds_count{instance="a", method="GET", route="/v1/orders", status="500"}'
HEARD = 'loop_processor_events_total{processor="stripe", result="new"}'
REFUSED = 'loop_processor_events_total{processor="stripe", result="refused"}'
MISMATCH = 'loop_reconciliation_mismatches_total{processor="stripe"}'

WELL = {
    'up{job="loop", instance="a"}': "1x60",
    'loop_build_info{job="loop", instance="a", version="1", database="postgres"}': "1x60",
    'loop_database_up{instance="a"}': "1x60",
    'loop_redis_up{used_for="limits", instance="a"}': "1x60",
    'loop_database_connections{state="waiting", instance="a"}': "0x60",
    'loop_unclear_outcomes_total{kind="payment"}': "3x60",
    "loop_orders_in_review": "0x60",
    "loop_webhook_deliveries_waiting": "20x60",
    'loop_webhook_tries_total{result="given_up"}': "4x60",
    'loop_jobs_oldest_due_seconds{kind="deliver_webhooks"}': "1x60",
    PAID: "0+10x60",
    FAILED: "0+1x60",
    CALLED: "0+10x60",
    UNHEARD: "0x60",
    SERVED: "0+100x60",
    BROKEN: "0x60",
    HEARD: "0+10x60",
    REFUSED: "0x60",
    MISMATCH: "0x60",
}
"""An hour, minute by minute, in which all is well, as promtool writes it."""

ILL = {
    "LoopNotScraped": {'up{job="loop", instance="a"}': "1x20 0x40"},
    "LoopDatabaseDown": {'loop_database_up{instance="a"}': "1x20 0x40"},
    "LoopServerErrors": {BROKEN: "0+5x60"},
    "LoopOutcomeUnclear": {'loop_unclear_outcomes_total{kind="payment"}': "3x45 4x15"},
    "LoopOrdersInReview": {"loop_orders_in_review": "0x10 1x50"},
    "LoopReconciliationMismatch": {MISMATCH: "_x45 2x15"},
    "LoopSuccessRateLow": {FAILED: "0+30x60"},
    "LoopProcessorUnclear": {UNHEARD: "0+5x60"},
    "LoopCircuitOpen": {'loop_circuits_open{processor="stripe"}': "_x45 1x15"},
    "LoopNobodyTakesPayments": {'loop_routing_decisions_total{processor="none", mode="live", by="refused"}': "0+1x60"},
    "LoopJobsDead": {'loop_jobs_dead{kind="send_refund"}': "_x58 1x2"},
    "LoopJobsLate": {'loop_jobs_oldest_due_seconds{kind="deliver_webhooks"}': "1x50 61+60x10"},
    "LoopWebhooksWaiting": {"loop_webhook_deliveries_waiting": "20x30 5000x30"},
    "LoopWebhooksGivenUp": {'loop_webhook_tries_total{result="given_up"}': "0+1x60"},
    "LoopProcessorWebhooksRefused": {REFUSED: "0+20x60"},
    "LoopConnectionsExhausted": {'loop_database_connections{state="waiting", instance="a"}': "0x50 3x10"},
    "LoopRedisDown": {'loop_redis_up{used_for="limits", instance="a"}': "1x50 0x10"},
}
"""What is otherwise in an hour at whose end one alert, and no other, is to fire."""


@with_promtool
@pytest.mark.parametrize("alert", [None, *ILL])
def test_an_alert_fires_when_its_hour_has_come_and_no_other_does(alert: str | None, tmp_path: Path) -> None:
    assert list(ILL) == [rule["alert"] for rule in rules()]
    series = {**WELL, **(ILL[alert] if alert else {})}
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    expected = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "60m",
        "exp_samples": firing,
    }
    hour = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [expected],
    }
    (tmp_path / "hour.yml").write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": [hour]}))
    promtool("test", tmp_path / "hour.yml")


@with_promtool
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    asked = {"groups": [{"name": "asked", "rules": [{"record": f"a:{n}", "expr": q} for n, q in enumerate(QUESTIONS)]}]}
    (tmp_path / "asked.yml").write_text(json.dumps(asked))
    for path in (ALERTS, tmp_path / "asked.yml"):
        promtool("check", path)
