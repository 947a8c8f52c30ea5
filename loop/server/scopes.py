"""Scopes over HTTP: the one table that says what an API key must be allowed for each route."""

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request

from loop.domain.scopes import Scope

PERSON: Final = None
"""What a route asks for that no API key may do, whatever its scopes."""

_ORDER: Final = "/v1/orders/{order_id}"
_CHECKOUT: Final = "/v1/checkout/sessions"
_ENDPOINT: Final = "/api/webhook-endpoints/{endpoint_id}"
_RULE: Final = "/api/routing-rules/{rule_id}"

SCOPES: Final[Mapping[str, Mapping[str, Scope | None]]] = {
    "/v1/orders": {"GET": Scope.ORDERS_READ, "POST": Scope.ORDERS_WRITE},
    _ORDER: {"GET": Scope.ORDERS_READ},
    f"{_ORDER}/pay": {"POST": Scope.PAYMENTS_WRITE},
    f"{_ORDER}/capture": {"POST": Scope.PAYMENTS_WRITE},
    f"{_ORDER}/cancel": {"POST": Scope.PAYMENTS_WRITE},
    f"{_ORDER}/refund": {"POST": Scope.REFUNDS_WRITE},
    f"{_ORDER}/refunds": {"GET": Scope.ORDERS_READ},
    f"{_ORDER}/transactions": {"GET": Scope.ORDERS_READ},
    f"{_ORDER}/timeline": {"GET": Scope.ORDERS_READ},
    f"{_ORDER}/disputes": {"GET": Scope.ORDERS_READ},
    _CHECKOUT: {"POST": Scope.PAYMENTS_WRITE},
    f"{_CHECKOUT}/{{session_id}}": {"GET": Scope.ORDERS_READ},
    f"{_CHECKOUT}/{{session_id}}/expire": {"POST": Scope.PAYMENTS_WRITE},
    "/v1/events": {"GET": Scope.ORDERS_READ},
    "/v1/events/{event_id}": {"GET": Scope.ORDERS_READ},
    "/api/orders": {"GET": Scope.ORDERS_READ},
    "/api/dashboard/stats": {"GET": Scope.ORDERS_READ},
    "/api/reconciliation": {"GET": Scope.ORDERS_READ},
    "/api/reconciliation/{run_id}": {"GET": Scope.ORDERS_READ},
    "/api/merchants/me": {"GET": Scope.ACCOUNT_MANAGE, "PUT": Scope.ACCOUNT_MANAGE},
    "/api/me": {"GET": Scope.ACCOUNT_MANAGE, "PUT": Scope.ACCOUNT_MANAGE},
    "/api/api-keys": {"GET": Scope.ACCOUNT_MANAGE, "POST": PERSON},
    "/api/api-keys/{key_id}": {"DELETE": PERSON},
    "/api/api-keys/{key_id}/rotate": {"POST": PERSON},
    "/api/sessions": {"GET": PERSON},
    "/api/sessions/{session_id}": {"DELETE": PERSON},
    "/api/processors": {"GET": Scope.PROCESSORS_MANAGE},
    "/api/processors/{name}": dict.fromkeys(("POST", "PATCH", "DELETE"), Scope.PROCESSORS_MANAGE),
    "/api/routing-rules": {"GET": Scope.ROUTING_MANAGE, "POST": Scope.ROUTING_MANAGE},
    "/api/routing-rules/test": {"POST": Scope.ROUTING_MANAGE},
    _RULE: dict.fromkeys(("GET", "PUT", "DELETE"), Scope.ROUTING_MANAGE),
    "/api/audit-log": {"GET": Scope.AUDIT_READ},
    "/api/webhooks": {"GET": Scope.WEBHOOKS_MANAGE},
    "/api/webhooks/{event_id}/attempts": {"GET": Scope.WEBHOOKS_MANAGE},
    "/api/webhooks/{event_id}/retry": {"POST": Scope.WEBHOOKS_MANAGE},
    "/api/webhook-endpoints": {"GET": Scope.WEBHOOKS_MANAGE, "POST": Scope.WEBHOOKS_MANAGE},
    _ENDPOINT: dict.fromkeys(("GET", "PUT", "PATCH", "DELETE"), Scope.WEBHOOKS_MANAGE),
    f"{_ENDPOINT}/rotate-secret": {"POST": Scope.WEBHOOKS_MANAGE},
    f"{_ENDPOINT}/promote-secret": {"POST": Scope.WEBHOOKS_MANAGE},
    f"{_ENDPOINT}/test": {"POST": Scope.WEBHOOKS_MANAGE},
    f"{_ENDPOINT}/replay": {"POST": Scope.WEBHOOKS_MANAGE},
}
"""By the route's path, then its method. What is missing needs a person, so that a forgotten route lets no key in."""


def asked_of(request: Request) -> Scope | None:
    """Return what a request's route asks of an API key; `PERSON` where no key will do."""
    path: str = request.scope["route"].path
    return SCOPES.get(path, {}).get("GET" if request.method == "HEAD" else request.method, PERSON)
