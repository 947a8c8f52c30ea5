"""Checkout: hosted pages for orders, how one is paid, and where its customer goes next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from loop.domain.attempts import Attempt, AttemptStatus, Declined
from loop.domain.declines import DeclineClass
from loop.domain.errors import LoopError, invalid, not_found
from loop.domain.events import EventType
from loop.domain.ids import PREFIX_CHECKOUT_SESSION
from loop.domain.money import Money
from loop.domain.orders import Order, OrderStatus, require_in_time
from loop.storage import checkout, orders
from loop.storage.checkout import PAID, CheckoutSession
from loop.storage.orders import OrderInHand
from loop.storage.statements import Parameters, Write
from loop.telemetry import get_logger
from loop.workflows import payments, routing, webhooks
from loop.workflows.attempts import PayRequest
from loop.workflows.context import Context
from loop.workflows.orders import NewOrder, creating
from loop.workflows.outcomes import record, turning_checkout

log = get_logger(__name__)

EXPIRE_BATCH = 100

PLACEHOLDER = "{SESSION_ID}"
"""Stands in successUrl and cancelUrl where the session's id goes."""


class SessionStatus(StrEnum):
    """Where a checkout session stands."""

    OPEN = "open"
    COMPLETED = "completed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class NewSession:
    """What a merchant asks for: a page for a new order of `amount`, or for the order `order_id`.

    Without a `success_url` the page itself says that it is paid.
    """

    success_url: str | None
    cancel_url: str | None
    expires_in: timedelta
    amount: Money | None = None
    order_id: str | None = None
    customer_id: str | None = None
    customer_email: str | None = None
    metadata: Mapping[str, object] | None = None
    line_items: Sequence[Mapping[str, object]] = field(default=())


@dataclass(frozen=True, slots=True)
class SessionInHand:
    """A checkout session with its order."""

    session: CheckoutSession
    order: OrderInHand


async def creating_session(
    context: Context, merchant_id: str, new: NewSession
) -> tuple[SessionInHand, list[tuple[Write, Parameters]]]:
    """Return a new session with its order, and the writes that make what is new of them.

    Raises `not_found`, `invalid_status` and `order_expired` for an order that is absent or no longer to be paid.
    """
    now = context.now()
    expires_at = now + new.expires_in
    writes: list[tuple[Write, Parameters]] = []
    if new.order_id is not None:
        order = await _unpaid_order(context, merchant_id, new.order_id)
        expires_at = min(expires_at, order.expires_at or expires_at)
    elif new.amount is not None:
        order, writes = creating(
            context,
            merchant_id,
            NewOrder(
                amount=new.amount,
                customer_id=new.customer_id,
                customer_email=new.customer_email,
                metadata=new.metadata,
                cancel_url=new.cancel_url,
                expires_at=expires_at,
            ),
        )
    else:
        raise ValueError("a session needs an amount or an order")
    session_id = context.new_id(PREFIX_CHECKOUT_SESSION)
    url = f"{context.settings.checkout_base_url}/checkout/{session_id}"
    session = CheckoutSession(
        id=session_id,
        merchant_id=merchant_id,
        order_id=order.id,
        url=url,
        success_url=new.success_url or url,
        cancel_url=new.cancel_url,
        line_items=new.line_items,
        expires_at=expires_at,
        completed_at=None,
        expired_at=None,
        created_at=now,
    )
    return SessionInHand(session, OrderInHand(order, None)), [*writes, checkout.insertion(session)]


async def create_session(context: Context, merchant_id: str, new: NewSession) -> CheckoutSession:
    """Create a session, with its order unless it is for one that is there; raises what `creating_session` raises."""
    found, writes = await creating_session(context, merchant_id, new)
    await context.database.write_at_once(writes)
    context.runner.wake()
    return found.session


async def _unpaid_order(context: Context, merchant_id: str, order_id: str) -> Order:
    async with context.database.reading() as reader:
        order = await orders.get(reader, merchant_id, order_id, is_test=context.is_test)
    if order is None:
        raise not_found("order")
    if order.status not in (OrderStatus.PENDING, OrderStatus.FAILED):
        raise invalid("invalid_status", f"The order is {order.status}; only an unpaid one can be checked out.")
    require_in_time(order, context.now())
    return order


async def find(context: Context, session_id: str) -> SessionInHand:
    """Return a session with its order, for whoever knows its address; raises `not_found`."""
    async with context.database.reading() as reader:
        session = await checkout.get(reader, session_id)
        order = None
        if session is not None:
            order = await orders.get_in_hand(reader, session.merchant_id, session.order_id)
    if session is None or order is None:
        raise not_found("checkout session")
    return SessionInHand(session, order)


async def get(context: Context, merchant_id: str, session_id: str) -> SessionInHand:
    """Return a merchant's session with its order, which is of the mode at hand; raises `not_found`."""
    found = await find(context, session_id)
    if found.session.merchant_id != merchant_id or context.is_test not in (None, found.order.order.is_test):
        raise not_found("checkout session")
    return found


def status_of(context: Context, found: SessionInHand) -> SessionStatus:
    """Return where a session stands now: its time may be up before anything has noticed."""
    session, order = found.session, found.order.order
    if order.status in PAID:
        return SessionStatus.COMPLETED
    is_over = session.expired_at is not None or session.expires_at <= context.now()
    return SessionStatus.EXPIRED if is_over or order.status is OrderStatus.CANCELLED else SessionStatus.OPEN


async def expire(context: Context, merchant_id: str, session_id: str) -> SessionInHand:
    """Close a session, so that nobody pays through it any more; one that has expired stays as it is.

    The order stays: its merchant may cancel it. Raises `not_found`, and `invalid_status` for a completed session.
    """
    found = await get(context, merchant_id, session_id)
    now = context.now()
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, merchant_id, found.session.order_id)
        current = await checkout.get(session, session_id)
        if in_hand is None or current is None:
            raise not_found("checkout session")
        found = SessionInHand(current, in_hand)
        if status_of(context, found) is SessionStatus.COMPLETED:
            raise invalid("invalid_status", "The checkout session is completed; refund its order instead.")
        if await checkout.expire(session, session_id, now):
            found = SessionInHand(replace(current, expired_at=now), in_hand)
            about = {"checkoutSessionId": session_id}
            told = webhooks.recording(context, in_hand.order, EventType.CHECKOUT_EXPIRED, payload=about)
            await session.run_together([orders.updating(in_hand.order), *told])
    context.runner.wake()
    log.info("checkout.expired", checkout_session_id=session_id, order_id=found.session.order_id)
    return found


async def expire_due(context: Context) -> int:
    """Close sessions whose time is up, a batch at a time, and tell their merchants; return how many."""
    async with context.database.reading() as reader:
        due = await checkout.due(reader, context.now(), EXPIRE_BATCH)
    for session in due:
        try:
            await expire(context, session.merchant_id, session.id)
        except LoopError as error:  # its order was paid just when it was made
            log.info("checkout.not_expired", checkout_session_id=session.id, code=error.code)
            await _complete(context, session)
    return len(due)


async def _complete(context: Context, page: CheckoutSession) -> None:
    async with context.database.transaction() as session:
        in_hand = await orders.lock(session, page.merchant_id, page.order_id)
        writes = [] if in_hand is None else await turning_checkout(context, session, in_hand.order)
        if in_hand is not None and writes:
            await session.run_together([orders.updating(in_hand.order), *writes])
    context.runner.wake()


def may_pay(context: Context, found: SessionInHand) -> bool:
    """Return whether the customer may start a payment now: none is under way and the order has tries left."""
    order = found.order.order
    has_tries = order.attempt_count < context.settings.max_attempts_per_order
    is_payable = order.status is OrderStatus.PENDING or (order.status is OrderStatus.FAILED and has_tries)
    return is_payable and status_of(context, found) is SessionStatus.OPEN


async def pay(context: Context, session_id: str, wait_s: float) -> SessionInHand:
    """Start a payment for the customer of a page, unless one is under way or the session is over.

    A second click finds the payment of the first. Raises `not_found`, `no_processor`.
    """
    found = await find(context, session_id)
    if not may_pay(context, found):
        return found
    order = found.order.order
    request = PayRequest(is_retry=order.status is OrderStatus.FAILED, return_url=found.session.url)
    try:
        paid = await payments.pay(context, order.merchant_id, order.id, request=request, wait_s=wait_s)
    except LoopError as error:
        if error.code not in ("invalid_status", "order_expired", "attempts_exhausted"):
            raise
        return await find(context, session_id)
    return SessionInHand(found.session, paid)


async def take_back(context: Context, attempt_id: str, parameters: Mapping[str, str]) -> OrderInHand:
    """Take a customer back from paying: ask what became of it, and record it.

    A declined payment mostly goes on waiting for another card. Where the customer of a page may better try at another
    processor it ends here instead, so that their next try is a new attempt there; what was declined is fenced then.
    """
    in_hand = await payments.complete_action(context, attempt_id, parameters)
    attempt = in_hand.attempt
    if attempt is None or attempt.error_code is None or attempt.decline_class is None:
        return in_hand
    if attempt.status is not AttemptStatus.REQUIRES_ACTION or not await _is_followed(context, in_hand, attempt):
        return in_hand
    declined = Declined(
        attempt.error_code,
        DeclineClass(attempt.decline_class),
        attempt.error_message or "",
        raw_code=attempt.raw_error_code,
        reference=attempt.processor_reference,
    )
    return (await record(context, attempt, declined, job=None)).in_hand


async def _is_followed(context: Context, in_hand: OrderInHand, attempt: Attempt) -> bool:
    """Tell whether a declined attempt is the latest one of a page that is open, and another processor may be tried."""
    order = in_hand.order
    if attempt.number != order.attempt_count or order.attempt_count >= context.settings.max_attempts_per_order:
        return False
    async with context.database.reading() as reader:
        sessions = await checkout.of_order(reader, order.id)
        page = next((each for each in sessions if each.url == attempt.request.get("merchantReturnUrl")), None)
        if page is None or status_of(context, SessionInHand(page, in_hand)) is not SessionStatus.OPEN:
            return False
        return await routing.has_next(context, reader, order, after=attempt)


def filled_in(url: str, session: CheckoutSession) -> str:
    """Return a session's address with its id in the place that was left for it."""
    return url.replace(PLACEHOLDER, quote(session.id, safe=""))


async def destination(context: Context, in_hand: OrderInHand) -> str | None:
    """Return where a customer who comes back from paying goes next, None for nowhere.

    That is the address that pay was given, else the order's, else the order's checkout page. Merchants' own addresses
    are told `orderId` and `status`; a page that is paid sends its customer on to its successUrl.
    """
    order, attempt = in_hand.order, in_hand.attempt
    given = None if attempt is None else attempt.request.get("merchantReturnUrl")
    async with context.database.reading() as reader:
        sessions = await checkout.of_order(reader, order.id)
    pages = {session.url: session for session in sessions}
    url = str(given) if given is not None else order.return_url
    if url is None and sessions:
        url = max(sessions, key=lambda session: session.id).url
    if url in pages:
        return filled_in(pages[url].success_url, pages[url]) if order.status in PAID else url
    return None if url is None else told(url, order)


def told(url: str, order: Order) -> str:
    """Return a merchant's address with the order's id and status added to its query."""
    parts = urlsplit(url)
    query = "&".join(filter(None, (parts.query, urlencode({"orderId": order.id, "status": order.status}))))
    return urlunsplit(parts._replace(query=query))
