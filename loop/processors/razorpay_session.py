"""Razorpay's blocking SDK made fit to wait for: own threads, deadlines, and errors that keep what Razorpay said."""

import asyncio
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import Final, TypeAlias

import razorpay
import requests
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError
from urllib3.exceptions import SSLError as TlsError

from loop.processors.base import Account
from loop.processors.http import CONNECT_S

THREADS_MAX: Final = 32
"""Calls to Razorpay that run at once; more wait for a thread, each for no longer than its own deadline."""

DEFAULT_API_BASE: Final = "https://api.razorpay.com"

_KEY_ID = re.compile(r"[!-9;-~]{1,255}")  # printable and without the colon that ends it in the header
_KEY_SECRET = re.compile(r"[!-~]{1,255}")
_WORD = re.compile(r"[\w.\[\]-]{1,120}", re.ASCII)

JsonObject: TypeAlias = Mapping[str, object]
SdkCall: TypeAlias = Callable[[razorpay.Client], object]


class RazorpayError(Exception):
    """A call that brought no answer to work with; its text is safe to log."""


class UnusableKeyError(RazorpayError):
    """The account has no key id or key secret, or something that cannot be one; nothing was sent."""

    def __init__(self) -> None:
        super().__init__("The account's Razorpay key id or key secret is missing or malformed.")


class UnreachedError(RazorpayError):
    """The connection never opened; nothing was sent."""

    def __init__(self) -> None:
        super().__init__("The connection to Razorpay could not be opened.")


class LostError(RazorpayError):
    """The request may have been heard; no answer came, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What Razorpay's `error` object says; `description` may repeat what was sent, so it is not shown."""

    code: str | None
    reason: str | None
    parameter: str | None
    source: str | None
    step: str | None
    description: str = field(repr=False)


class RefusedError(RazorpayError):
    """Razorpay answered with an error of its own. The SDK keeps only its description; this keeps the rest."""

    def __init__(self, status: int, refusal: Refusal) -> None:
        named = (refusal.code, refusal.reason, refusal.parameter, refusal.source, refusal.step)
        super().__init__(f"Razorpay answered {status} ({', '.join(each for each in named if each) or 'no code'}).")
        self.status = status
        self.refusal = refusal


class RazorpayCalls:
    """Makes the SDK's calls, each in one of `THREADS_MAX` threads with a session of its own.

    No cookies, no redirects, no retries, no proxies from the environment. A thread cannot be stopped: after a
    cancelled await it runs on until its call's own deadlines, and what it sent has been sent.
    """

    def __init__(self, api_base: str | None, timeout_s: float) -> None:
        self._api_base = (api_base or DEFAULT_API_BASE).rstrip("/")
        self._timeout_s = timeout_s
        self._own = threading.local()
        self._sessions: list[requests.Session] = []
        self._threads = ThreadPoolExecutor(THREADS_MAX, "razorpay", initializer=self._open_session)

    @property
    def api_base(self) -> str:
        """Where Razorpay's API is, without a slash at its end."""
        return self._api_base

    async def run(self, account: Account, call: SdkCall) -> JsonObject:
        """Return the object that an SDK call answers; raises only `RazorpayError`."""
        key_id, key_secret = account.credentials.get("keyId", ""), account.credentials.get("keySecret", "")
        if not (_KEY_ID.fullmatch(key_id) and _KEY_SECRET.fullmatch(key_secret)):
            raise UnusableKeyError
        ends_s = time.monotonic() + self._timeout_s
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, (key_id, key_secret), call, ends_s)

    def close(self) -> None:
        """Let no further call begin, and close what is open; calls under way end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for session in self._sessions:
            session.close()

    def _open_session(self) -> None:
        self._own.session = _Session()
        self._sessions.append(self._own.session)

    def _run(self, auth: tuple[str, str], call: SdkCall, ends_s: float) -> JsonObject:
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            raise LostError("No thread was free for the call to Razorpay in time.")
        self._own.session.timeouts = (min(CONNECT_S, left_s), left_s)
        client = razorpay.Client(session=self._own.session, auth=auth, base_url=self._api_base)
        try:
            answer = call(client)
        except requests.RequestException as error:
            raise LostError(f"The call to Razorpay failed ({type(error).__name__}).") from error
        if not isinstance(answer, dict):
            raise LostError("Razorpay's answer is not an object.")
        return answer


class _Session(requests.Session):
    """Raises its own errors before the SDK sees an answer: the SDK would drop half of it and print to stdout."""

    timeouts = (CONNECT_S, CONNECT_S)
    """How long to wait for the connection, and then for each part of the answer, in seconds; set for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def send(self, request: requests.PreparedRequest, **options: object) -> requests.Response:
        """Send one request within its deadlines, and return its answer when it is a JSON object of success."""
        bundle = options.get("verify")
        try:
            response = super().send(
                request,
                verify=bundle if isinstance(bundle, str) else True,
                timeout=self.timeouts,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            if _is_surely_unsent(error):
                raise UnreachedError from error
            raise LostError(f"No answer came from Razorpay ({type(error).__name__}).") from error
        body = _object_in(response)
        if response.ok and response.status_code < 300 and body is not None:
            return response
        details = None if body is None else body.get("error")
        if response.status_code >= 400 and isinstance(details, dict):
            raise RefusedError(response.status_code, _refusal_of(details))
        raise LostError(f"Razorpay answered {response.status_code} with something unreadable.")


def _is_surely_unsent(error: requests.RequestException) -> bool:
    """Tell whether a request failed while its connection was opened: refused, unresolvable, no trust, too slow."""
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else None
    if isinstance(reason, TlsError):  # it can also break later, but then not for a certificate
        return bool(reason.args) and isinstance(reason.args[0], ssl.SSLCertVerificationError)
    return isinstance(reason, ConnectTimeoutError)


def _object_in(response: requests.Response) -> dict[str, object] | None:
    try:
        body: object = response.json()
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _refusal_of(details: Mapping[str, object]) -> Refusal:
    """Return what is said in an error object; Razorpay writes NA, or nothing, where it has nothing to say."""

    def word(name: str) -> str | None:
        value = details.get(name)
        return value if isinstance(value, str) and value != "NA" and _WORD.fullmatch(value) else None

    description = details.get("description")
    return Refusal(
        code=word("code"),
        reason=word("reason"),
        parameter=word("field"),
        source=word("source"),
        step=word("step"),
        description=description if isinstance(description, str) else "",
    )
