"""The errors of the stand-in's Stripe face, in the shape Stripe's API answers them."""

from loop.testing.stub_ledger import JsonObject


class StripeError(Exception):
    """An error answer: `executed` ones are results and are stored under the idempotency key, the others are not.

    Only a 402 keeps what the work changed (a decline leaves its intent and its failed charge behind).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        executed: bool = False,
        details: JsonObject | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.executed = executed
        self.headers: dict[str, str] = {}
        kind = "card_error" if status == 402 else "api_error" if status >= 500 else "invalid_request_error"
        self.error: JsonObject = {"message": message, "type": kind}
        if code is not None:
            self.error["code"] = code
            self.error["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        if param is not None:
            self.error["param"] = param
        self.error.update(details or {})

    @property
    def body(self) -> JsonObject:
        """The JSON answer."""
        return {"error": dict(sorted(self.error.items()))}


def missing_object(noun: str, object_id: str, *, param: str = "id", status: int = 404) -> StripeError:
    """Return the refusal for an id this account does not have; 404 in a path, 400 in a parameter."""
    return StripeError(status, f"No such {noun}: '{object_id}'", code="resource_missing", param=param)


def unexpected_state(message: str, intent: JsonObject) -> StripeError:
    """Return the refusal of an operation the intent's status does not allow; it carries the intent."""
    return StripeError(
        400,
        message,
        code="payment_intent_unexpected_state",
        executed=True,
        details={"payment_intent": intent},
    )


def unauthorized(message: str) -> StripeError:
    """Return the 401 for an absent or unknown API key."""
    refusal = StripeError(401, message)
    refusal.headers["WWW-Authenticate"] = 'Bearer realm="Stripe"'
    return refusal


def refusal_of(status: int) -> StripeError:
    """Return Stripe's answer for a status that has nothing to do with the request itself."""
    if status == 429:
        return StripeError(429, "Request rate limit exceeded.", code="rate_limit")
    if status == 409:
        refusal = StripeError(
            409,
            "This object cannot be accessed right now because another API request or Stripe process is "
            "currently accessing it.",
            code="lock_timeout",
        )
        refusal.headers["Stripe-Should-Retry"] = "true"
        return refusal
    refusal = StripeError(status, "An unknown error occurred")
    if status == 503:
        refusal.headers["Stripe-Should-Retry"] = "true"
    return refusal


def key_in_use(key: str) -> StripeError:
    """Return the 409 for an idempotency key whose first request is still running."""
    refusal = StripeError(
        409,
        f"There is currently another in-progress request using this Idempotent Key ({key}).",
        code="idempotency_key_in_use",
    )
    refusal.headers["Stripe-Should-Retry"] = "true"
    return refusal


def key_reused(key: str, *, other_path: tuple[str, str] | None = None) -> StripeError:
    """Return the 400 for an idempotency key that came before with another request."""
    rule = (
        "with the same parameters they were first used with."
        if other_path is None
        else f"for the same endpoint they were first used for ('{other_path[0]}' vs '{other_path[1]}')."
    )
    return StripeError(
        400,
        f"Keys for idempotent requests can only be used {rule} Try using a key other than '{key}' if you meant "
        "to execute a different request.",
        details={"type": "idempotency_error"},
    )
