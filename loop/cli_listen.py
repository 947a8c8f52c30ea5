"""The commands for developing a shop: hearing a merchant's events at a local address, and making them happen."""

import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from loop.cli_console import AsJson, load_settings, print_record
from loop.domain.errors import ErrorKind, LoopError, invalid, unavailable

POLL_EVERY_S = 1.0
AWAY_PAUSE_S = 5.0
"""How long Loop is left alone after it did not answer."""
CALL_WITHIN_S = 40.0
"""How long one answer may take: a payment may hold its own back for 30 seconds."""
PAGE_EVENTS = 100
PAGES_MAX = 50
"""Pages of events that one look reads at most; what happened before them is not forwarded."""
SEEN_MAX = 10 * PAGE_EVENTS * PAGES_MAX
"""How many events are remembered as forwarded."""
KEY_VARIABLE = "LOOP_API_KEY"
KINDS = {
    400: ErrorKind.INVALID,
    401: ErrorKind.UNAUTHENTICATED,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.NOT_FOUND,
    409: ErrorKind.CONFLICT,
    413: ErrorKind.TOO_LARGE,
    429: ErrorKind.RATE_LIMITED,
}
"""What kind of error an answer's status means; any other is that Loop is away."""

Url = Annotated[
    str | None, typer.Option("--url", help="Where Loop is; checkout_base_url of these settings without it.")
]


@dataclass(frozen=True, slots=True)
class Api:
    """A running Loop's API, called with one merchant's key."""

    url: str
    key: str

    def get(self, path: str) -> bytes:
        """Return what a path answers; raises LoopError for a refusal, and `unavailable` without an answer."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        """Post to a path and return the JSON that it answers; raises as `get`."""
        return json.loads(self._call("POST", path, json.dumps(body).encode()))

    def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {"X-API-Key": self.key, "Content-Type": "application/json"}
        try:
            status, answer = exchange(method, self.url + path, body=body, headers=headers)
        except OSError as error:
            raise unavailable("not_ready", f"No answer from {self.url} ({type(error).__name__}).") from error
        if status >= 300:
            raise _refusal(status, answer, self.url)
        return answer


def _refusal(status: int, answer: bytes, url: str) -> LoopError:
    try:
        told = json.loads(answer)
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        return unavailable("not_ready", f"{url} answers {status}, and not as a Loop does.")
    return LoopError(KINDS.get(status, ErrorKind.UNAVAILABLE), code, message)


def exchange(method: str, url: str, *, body: bytes | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """Return the status and body that an address answers, without following it elsewhere; raises OSError."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=CALL_WITHIN_S)
    try:
        connection.request(
            method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, dict(headers)
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    except HTTPException as error:
        raise ConnectionError(f"no HTTP: {type(error).__name__}") from error
    finally:
        connection.close()


def _api(url: str | None) -> Api:
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and sys.stdin.isatty():
        key = str(typer.prompt("API key", hide_input=True))
    key = key.strip()  # such as the end of a line that Windows wrote
    if not key:
        raise invalid("validation_failed", f"Set {KEY_VARIABLE} to an API key of the merchant.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise invalid("validation_failed", f"{KEY_VARIABLE} is no API key: it holds what no key does.")
    return Api(load_settings(makes=False).checkout_base_url if url is None else _address("--url", url), key)


def _address(option: str, url: str) -> str:
    """Return an address that requests can be sent to; raises `validation_failed`."""
    from loop.server.request import require_web_url

    try:
        return require_web_url(url).rstrip("/")
    except ValueError as error:
        raise invalid("validation_failed", f"{option} {error}.") from error


def listen(
    *,
    forward_to: Annotated[str | None, typer.Option(help="Where each event is posted, such as a local shop.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show a merchant's events as they happen and post each to a local address, signed as a delivery is; until Ctrl-C.

    The API key comes from LOOP_API_KEY, or is asked for; its mode is that of the events. The secret that signs belongs
    to the key, and stays the same while the key does. An event whose post fails is not posted again.

    Example: LOOP_API_KEY=sk_test_… loop listen --forward-to http://localhost:3000/hook
    """
    from loop.domain.deliveries import SigningSecrets, make_secret, signature_headers
    from loop.runtime import system_now
    from loop.workflows.deliveries import USER_AGENT

    if forward_to is not None:
        _address("--forward-to", forward_to)
    api = _api(url)
    secret = make_secret(hmac.digest(api.key.encode(), b"loop listen", hashlib.sha256))
    seen: dict[str, None] = dict.fromkeys(event["id"] for event in _page(api, None)["data"])
    typer.echo(f"Listening to {api.url}; signing secret: {secret}", err=True)
    for event_id, event_type, body in _events(api, seen):
        result: int | str | None = None
        if forward_to is not None:
            signed = signature_headers(SigningSecrets(secret), event_id, body=body, now=system_now())
            headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, **signed}
            try:
                result, _ = exchange("POST", forward_to, body=body, headers=headers)
            except OSError as error:
                result = type(error).__name__
        _tell(event_id, event_type, result, as_json=as_json)


def _tell(event_id: str, event_type: str, result: int | str | None, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"id": event_id, "eventType": event_type, "answer": result}))
    else:
        typer.echo(f"{event_type:24}{event_id}" + ("" if result is None else f"  -> {result}"))
    sys.stdout.flush()  # somebody may read this by a pipe


def _events(api: Api, seen: dict[str, None]) -> Iterator[tuple[str, str, bytes]]:
    """Yield the id, type and very text of each event that is not seen yet; it ends with the program."""
    is_away = False
    while True:  # until the program is stopped
        try:
            for event in _unseen(api, seen):
                body = api.get(f"/v1/events/{event['id']}")
                seen[event["id"]] = None
                yield event["id"], event["eventType"], body
        except LoopError as error:
            if error.kind not in {ErrorKind.UNAVAILABLE, ErrorKind.RATE_LIMITED}:
                raise
            if not is_away:
                typer.echo(f"{error.message} Trying again every {AWAY_PAUSE_S:g} s.", err=True)
            is_away = True
            time.sleep(AWAY_PAUSE_S)
        else:
            is_away = False
            for old in [*seen][: max(0, len(seen) - SEEN_MAX)]:
                del seen[old]
            time.sleep(POLL_EVERY_S)


def _unseen(api: Api, seen: Mapping[str, None]) -> list[dict[str, Any]]:
    """Return the events that are new, the oldest first. A page may hold one that was committed after a newer one."""
    news: list[dict[str, Any]] = []
    cursor: str | None = None
    for _ in range(PAGES_MAX):
        page = _page(api, cursor)
        fresh = [event for event in page["data"] if event["id"] not in seen]
        news += fresh
        if len(fresh) < len(page["data"]) or not page["hasMore"]:
            break
        cursor = page["nextCursor"]
    return news[::-1]


def _page(api: Api, cursor: str | None) -> Any:  # noqa: ANN401 - JSON
    after = "" if cursor is None else f"&cursor={cursor}"
    return json.loads(api.get(f"/v1/events?limit={PAGE_EVENTS}{after}"))


@dataclass(frozen=True, slots=True)
class Scene:
    """How an event comes about: the sandbox's token, whether money is only held, and what is asked for then."""

    token: str | None = None
    is_manual: bool = False
    then: str | None = None


SCENES: Mapping[str, Scene] = {
    "order.created": Scene(),
    "payment.processing": Scene("tok_pending"),
    "payment.requires_action": Scene("tok_3ds"),
    "payment.authorized": Scene("tok_approve", is_manual=True),
    "payment.captured": Scene("tok_approve"),
    "payment.failed": Scene("tok_decline_declined"),
    "payment.cancelled": Scene("tok_approve", is_manual=True, then="cancel"),
    "refund.created": Scene("tok_approve", then="refund"),
    "refund.processed": Scene("tok_approve", then="refund"),
    "refund.failed": Scene("tok_refund_fails_later", then="refund"),
}
"""What can be made to happen, and how."""


def trigger(
    event: Annotated[str, typer.Argument(help="Such as payment.captured.", metavar="EVENT")],
    *,
    amount: Annotated[int, typer.Option(min=1, max=100_000_000, help="In minor units: 4999 is 49.99 USD.")] = 4999,
    currency: Annotated[str, typer.Option(help="Such as USD, EUR or INR.")] = "USD",
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make an event happen in test mode: an order at the sandbox goes as far as that, and tells of each step.

    The merchant needs a sandbox account (loop processor set … sandbox). The API key comes from LOOP_API_KEY, or is
    asked for.

    Example: LOOP_API_KEY=sk_test_… loop trigger payment.captured
    """
    scene = SCENES.get(event)
    if scene is None:
        raise invalid("validation_failed", f"{event} cannot be made to happen; these can: {', '.join(SCENES)}.")
    api = _api(url)
    if not api.key.startswith("sk_test_"):
        raise invalid("invalid_mode", "Only a test key (sk_test_…) makes events happen.")
    method = "manual" if scene.is_manual else "automatic"
    order = api.post("/v1/orders", {"amount": amount, "currency": currency, "captureMethod": method})
    path = f"/v1/orders/{order['id']}"
    if scene.token is not None:
        method_of_payment = {"type": "card", "token": scene.token}
        api.post(f"{path}/pay", {"processor": "sandbox", "paymentMethod": method_of_payment})
    if scene.then is not None:
        api.post(f"{path}/{scene.then}", {})
    order = json.loads(api.get(path))
    print_record({"event": event, "orderId": order["id"], "status": order["status"]}, as_json=as_json)
