"""The guide to webhooks tells the truth: its code verifies what Loop signs, and its list names every event."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import WebhookVerificationError

from loop.domain.deliveries import RETRY_STEPS_S, SigningSecrets, make_secret, signature_headers
from loop.domain.endpoint_health import FAILURES_MAX, GIVEN_UP_AFTER, IN_FLIGHT_MAX
from loop.domain.events import EventType
from loop.workflows.webhook_endpoints import MAX_ENDPOINTS

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "webhooks.md").read_text("utf-8")
SECRET = make_secret(bytes(range(32)))
BODY = '{"id":"evt_1","externalId":"Zoë 🛒"}'.encode()


def code_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def headers_at(moment: datetime) -> dict[str, str]:
    return signature_headers(SigningSecrets(SECRET), "evt_1", body=BODY, now=moment)


def now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the guide's code compares with the machine's clock


@pytest.fixture(params=["verify", "verify_own"])
def verify(request: pytest.FixtureRequest) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    for block in code_of("python"):
        exec(block, names)  # noqa: S102 - the guide's own code
    found: Callable[..., Any] = names[request.param]
    return found


def test_the_python_of_the_guide_takes_what_loop_signs_and_nothing_else(verify: Callable[..., Any]) -> None:
    headers = headers_at(now())
    assert verify(SECRET, BODY, headers) == json.loads(BODY)
    refusals = (ValueError, WebhookVerificationError)
    for secret, body, given in (
        (make_secret(bytes(32)), BODY, headers),
        (SECRET, BODY + b" ", headers),
        (SECRET, BODY, headers_at(now() - timedelta(minutes=6))),
        (SECRET, BODY, headers_at(now() + timedelta(minutes=6))),
    ):
        with pytest.raises(refusals):
            verify(secret, body, given)


NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_the_javascript_of_the_guide_takes_what_loop_signs_and_nothing_else() -> None:
    (block,) = code_of("js")
    call = "\nconst [secret, body, headers] = JSON.parse(process.argv[1]);\n"
    call += "console.log(verify(secret, Buffer.from(body), headers).externalId);\n"

    def run(secret: str, moment: datetime) -> "subprocess.CompletedProcess[str]":
        lower = {name.lower(): value for name, value in headers_at(moment).items()}
        given = json.dumps([secret, BODY.decode(), lower])
        return subprocess.run([str(NODE), "-e", block + call, given], capture_output=True, text=True, check=False)

    assert run(SECRET, now()).stdout == "Zoë 🛒\n"
    assert "not signed" in run(make_secret(bytes(32)), now()).stderr
    assert "too old" in run(SECRET, now() - timedelta(minutes=6)).stderr


def test_every_event_is_listed() -> None:
    listed = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \|", GUIDE, re.MULTILINE)
    assert sorted(listed) == sorted(EventType)


def test_the_numbers_are_those_of_the_code() -> None:
    assert (10, 4, 5, timedelta(days=5)) == (MAX_ENDPOINTS, IN_FLIGHT_MAX, FAILURES_MAX, GIVEN_UP_AFTER)
    hours = [round(step / 3_600) for step in RETRY_STEPS_S if step >= 3_600]
    assert RETRY_STEPS_S[:3] == (5, 300, 1_800)
    assert f"{', '.join(map(str, hours[:-1]))} and\n{hours[-1]} hours" in GUIDE
