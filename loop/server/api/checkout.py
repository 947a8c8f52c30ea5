"""Checkout sessions: create the hosted page of an order, read it, close it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.money import Money
from loop.server.auth import acting, authenticate
from loop.server.idempotency import Created, create_once
from loop.server.operations import Link, Operation, describes
from loop.server.request import (
    Amount,
    Body,
    Currency,
    Email,
    Text255,
    WebUrl,
    json_response,
    parse,
    path_id,
    read_json,
    time_text,
    validation_failed,
)
from loop.workflows import checkout
from loop.workflows.checkout import NewSession, SessionInHand, SessionStatus
from loop.workflows.context import Context

DAY_S: Final = 86_400
MIN_EXPIRES_IN_S: Final = 60
MAX_EXPIRES_IN_S: Final = 30 * DAY_S
MAX_LINE_ITEMS: Final = 100
MAX_QUANTITY: Final = 1_000_000


class LineItem(Body):
    """One line of what is bought; `amount` in minor units for one of `quantity`. Lines are shown, not added up."""

    name: Text255
    amount: Annotated[int, Field(ge=0, le=10**12)]
    quantity: Annotated[int, Field(ge=1, le=MAX_QUANTITY)] = 1


class CreateSession(Body):
    """The body of `POST /v1/checkout/sessions`; `expiresIn` in seconds. `orderId` names an order that is there."""

    success_url: WebUrl
    cancel_url: WebUrl | None = None
    amount: Amount | None = None
    currency: Currency | None = None
    customer_id: Text255 | None = None
    customer_email: Email | None = None
    metadata: dict[str, object] | None = None
    line_items: Annotated[list[LineItem], Field(max_length=MAX_LINE_ITEMS)] = Field(default_factory=list)
    order_id: Text255 | None = None
    expires_in: Annotated[int, Field(ge=MIN_EXPIRES_IN_S, le=MAX_EXPIRES_IN_S)] = DAY_S


class NewSessionJson(TypedDict):
    """Where to send the customer, and until when."""

    id: str
    url: str
    expiresAt: str


class LineItemJson(TypedDict):
    """One line of what is bought; `amount` in minor units for one of `quantity`."""

    name: str
    amount: int
    quantity: int


class SessionJson(TypedDict):
    """A checkout session with what its customer pays; amount in minor units."""

    id: str
    url: str
    amount: int
    currency: str
    status: SessionStatus
    orderId: str
    customerId: str | None
    customerEmail: str | None
    metadata: Mapping[str, object] | None
    lineItems: Sequence[LineItemJson]
    expiresAt: str
    completedAt: str | None
    createdAt: str


_OF_SESSION: Final = {"session_id": "/id"}


@describes(
    Operation(
        "createCheckoutSession",
        answer=NewSessionJson,
        status=201,
        body=CreateSession,
        errors=("invalid_currency", "invalid_status", "order_expired", "not_found"),
        is_keyed=True,
        example={"amount": 4999, "currency": "USD", "successUrl": "https://shop.example/thanks"},
        links=[Link("getCheckoutSession", _OF_SESSION), Link("expireCheckoutSession", _OF_SESSION)],
    )
)
async def create(request: Request) -> Response:
    """Create a session, with its order unless it is for one that is there."""
    caller = await authenticate(request)
    content = await read_json(request)
    wanted = parse(CreateSession, content)
    new = _new_session(wanted)

    async def creation() -> Created:
        found, writes = await checkout.creating_session(acting(request, caller), caller.merchant_id, new)
        session = found.session
        return writes, {"id": session.id, "url": session.url, "expiresAt": time_text(session.expires_at)}

    return await create_once(request, caller, content=content, creation=creation)


def _new_session(wanted: CreateSession) -> NewSession:
    if wanted.order_id is None and wanted.amount is None:
        raise validation_failed(("amount", "is required"))
    if wanted.order_id is not None:
        for name in ("amount", "currency", "customer_id", "customer_email", "metadata"):
            if getattr(wanted, name) is not None:
                field = CreateSession.model_fields[name].alias or name
                raise validation_failed((field, "belongs to the order that orderId names; leave it out"))
    return NewSession(
        success_url=wanted.success_url,
        cancel_url=wanted.cancel_url,
        expires_in=timedelta(seconds=wanted.expires_in),
        amount=None if wanted.amount is None else Money(wanted.amount, wanted.currency or "USD"),
        order_id=wanted.order_id,
        customer_id=wanted.customer_id,
        customer_email=wanted.customer_email,
        metadata=wanted.metadata,
        line_items=[{"name": i.name, "amount": i.amount, "quantity": i.quantity} for i in wanted.line_items],
    )


@describes(Operation("getCheckoutSession", answer=SessionJson, links=[Link("getOrder", {"order_id": "/orderId"})]))
async def get(request: Request) -> Response:
    """Answer one session."""
    caller = await authenticate(request)
    session_id = path_id(request, "session_id", noun="checkout session")
    context = acting(request, caller)
    return json_response(_session_json(context, await checkout.get(context, caller.merchant_id, session_id)))


@describes(Operation("expireCheckoutSession", answer=SessionJson, body=Body, errors=("invalid_status",), example={}))
async def expire(request: Request) -> Response:
    """Close a session before its time is up."""
    caller = await authenticate(request)
    session_id = path_id(request, "session_id", noun="checkout session")
    parse(Body, await read_json(request))
    context = acting(request, caller)
    return json_response(_session_json(context, await checkout.expire(context, caller.merchant_id, session_id)))


def _session_json(context: Context, found: SessionInHand) -> SessionJson:
    session, order = found.session, found.order.order
    return {
        "id": session.id,
        "url": session.url,
        "amount": order.amount_minor,
        "currency": order.currency,
        "status": checkout.status_of(context, found),
        "orderId": order.id,
        "customerId": order.customer_id,
        "customerEmail": order.customer_email,
        "metadata": order.metadata,
        "lineItems": [
            {"name": each["name"], "amount": each["amount"], "quantity": each["quantity"]}
            for each in session.line_items
        ],
        "expiresAt": time_text(session.expires_at),
        "completedAt": time_text(session.completed_at),
        "createdAt": time_text(session.created_at),
    }


routes = [
    Route("/v1/checkout/sessions", create, methods=["POST"]),
    Route("/v1/checkout/sessions/{session_id}", get, methods=["GET"]),
    Route("/v1/checkout/sessions/{session_id}/expire", expire, methods=["POST"]),
]
