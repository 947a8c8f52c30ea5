"""The dashboard's orders: found, listed, exported, told as a story, and acted on once for each form that was shown."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest

from loop.runtime import Running
from loop.server.dashboard.pages import orders as orders_page
from loop.storage import orders
from loop.workflows.retries import retry
from tests.api.client import Shop, open_shop
from tests.api.dashboard_desk import Desk, new_desk
from tests.merchant_server import MerchantServer, merchant_server

BADLY_NAMED = '"><script>alert(1)</script>{{ 7 * 7 }}'


@pytest.fixture
def flags() -> dict[str, object]:
    return {"webhook_allow_networks": "127.0.0.0/8"}


@pytest.fixture
async def desk(shop: Shop) -> AsyncIterator[Desk]:
    async with new_desk(shop) as signed_in:
        yield signed_in


async def found(desk: Desk, query: str) -> list[str]:
    """Return the external ids that a search finds."""
    answer = await desk.get(f"/dashboard/orders.json?{query}")
    assert answer.status == 200, answer.text
    return [each["externalId"] for each in json.loads(answer.text)["data"]]


async def test_an_order_is_found_by_what_is_known_of_it(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order(externalId="basket-7", customerEmail="ana@example.com", amount=123_450)
    await shop.paid_order(externalId="basket-8", customerEmail="ben@example.com", amount=700)
    for wanted in (
        order["id"], "basket-7", order["processorOrderId"], "ana@example.com", "1234.50", "1,234.5", "123450",
    ):  # fmt: skip
        assert await found(desk, f"q={wanted}") == ["basket-7"], wanted
    for unknown in ("basket", "ord_0", "zoe@example.com", "1234.51", "nothing"):
        assert await found(desk, f"q={unknown}") == [], unknown


async def test_a_number_is_an_id_before_it_is_an_amount(desk: Desk, shop: Shop) -> None:
    await shop.order(externalId="4999", amount=100)
    await shop.order(externalId="other", amount=4999)
    assert await found(desk, "q=4999") == ["4999"]
    assert await found(desk, "q=49.99") == ["other"]


async def test_an_order_is_found_by_its_refund_at_the_processor(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order(externalId="given-back")
    await shop.post(f"/v1/orders/{order['id']}/refund", {"amount": 100})
    entries = json.loads((await desk.get(f"/dashboard/orders/{order['id']}.json")).text)["timeline"]
    (reference,) = {
        each["details"]["processorTransactionId"] for each in entries if each["details"].get("type") == "refund"
    }
    assert await found(desk, f"q={reference}") == ["given-back"]


async def test_filters_are_in_the_address(desk: Desk, shop: Shop) -> None:
    await shop.paid_order(externalId="paid")
    await shop.paid_order("tok_decline_declined", externalId="declined")
    assert await found(desk, "status=failed") == ["declined"]
    assert await found(desk, "processor=sandbox&currency=usd&status=captured") == ["paid"]
    assert await found(desk, "review=1") == []
    page = await desk.get("/dashboard/orders?status=failed&q=none-such")
    assert "No order matches" in page.text
    assert (await desk.get("/dashboard/orders?status=paid")).status == 400


async def test_pages_follow_each_other_without_gap_or_repeat(desk: Desk, shop: Shop) -> None:
    wanted = sorted([(await shop.order())["id"] for _ in range(27)])
    first = json.loads((await desk.get("/dashboard/orders.json")).text)
    rest = json.loads((await desk.get(f"/dashboard/orders.json?cursor={first['nextCursor']}")).text)
    assert [each["id"] for each in first["data"] + rest["data"]] == wanted[::-1]
    assert not rest["hasMore"]
    assert f"cursor={first['nextCursor']}" in (await desk.get("/dashboard/orders")).text


async def test_export_holds_what_the_filter_finds(desk: Desk, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders_page, "CSV_ROWS_AT_ONCE", 2)
    wanted = [(await shop.order(externalId=f"n-{number}", amount=1_050))["id"] for number in range(5)]
    await shop.order(externalId="=1+1", description="\uff1d1+1", currency="JPY", amount=500)
    answer = await desk.get("/dashboard/orders.csv?currency=USD")
    assert answer.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == sorted(wanted, reverse=True)
    assert {row["amount"] for row in rows} == {"10.50"}
    (formula,) = csv.DictReader(io.StringIO((await desk.get("/dashboard/orders.csv?currency=JPY")).text))
    assert (formula["externalId"], formula["amount"]) == ("'=1+1", "500")
    assert formula["description"] == "'\uff1d1+1"


async def test_export_is_for_who_is_signed_in(shop: Shop) -> None:
    async with new_desk(shop, is_signed_in=False) as stranger:
        assert (await stranger.get("/dashboard/orders.csv")).status == 303


async def test_what_merchants_send_is_shown_as_text(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order(
        externalId=BADLY_NAMED, description=BADLY_NAMED, customerId=BADLY_NAMED, metadata={BADLY_NAMED: BADLY_NAMED}
    )
    for path in ("/dashboard", "/dashboard/orders", f"/dashboard/orders/{order['id']}"):
        text = (await desk.get(path)).text
        assert "<script>alert" not in text
        assert "49</" not in text.replace("49.99", "")
    assert "&lt;script&gt;alert(1)" in (await desk.get(f"/dashboard/orders/{order['id']}")).text


@pytest.mark.parametrize("place", ["", ".json"])
async def test_anothers_order_is_as_if_it_were_not_there(
    desk: Desk, served: Running, session: aiohttp.ClientSession, place: str
) -> None:
    other = await open_shop(session, served.url, served.context, name="other")
    await other.use_sandbox()
    order = await other.paid_order()
    theirs, absent = [await desk.get(f"/dashboard/orders/{order_id}{place}") for order_id in (order["id"], "ord_0")]
    assert theirs.status == absent.status == 404
    assert order["externalId"] not in theirs.text


@pytest.mark.parametrize("action", ["capture", "cancel", "refund", "retry", "resend"])
async def test_anothers_order_is_not_acted_on(
    desk: Desk, shop: Shop, served: Running, session: aiohttp.ClientSession, action: str
) -> None:
    other = await open_shop(session, served.url, served.context, name="other")
    await other.use_sandbox()
    order = await other.paid_order(captureMethod="manual" if action in ("capture", "cancel") else "automatic")
    own = await shop.paid_order()
    form = (await desk.get(f"/dashboard/orders/{own['id']}")).form("/refund")
    assert (await desk.post(f"/dashboard/orders/{order['id']}/{action}", form)).status == 404
    assert (await other.get(f"/v1/orders/{order['id']}")).body == order


async def test_refund_of_a_part_then_of_the_rest(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    answer = await desk.act(order["id"], "refund", amount="10.50", reason="a broken shade")
    assert answer.location == f"/dashboard/orders/{order['id']}?notice=refunded"
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["amountRefunded"] == 1_050
    (refund,) = (await shop.get(f"/v1/orders/{order['id']}/refunds")).body
    assert refund["reason"] == "a broken shade"
    page = await desk.get(answer.location)
    assert "At most 39.49 USD." in page.text
    await desk.act(order["id"], "refund")
    after = await desk.get(f"/dashboard/orders/{order['id']}")
    assert not after.offers("/refund")
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "refunded"


async def test_a_double_click_refunds_once(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    path = f"/dashboard/orders/{order['id']}/refund"
    page = await desk.get(f"/dashboard/orders/{order['id']}")
    form = {**page.form("/refund"), "amount": "10.00"}
    answers = await asyncio.gather(*(desk.post(path, form) for _ in range(5)))
    answers.append(await desk.post(path, form))  # and the back button
    assert {each.status for each in answers} == {303}
    assert len((await shop.get(f"/v1/orders/{order['id']}/refunds")).body) == 1
    await desk.act(order["id"], "refund", amount="10.00")  # a page that was opened anew asks anew
    assert len((await shop.get(f"/v1/orders/{order['id']}/refunds")).body) == 2


@pytest.mark.parametrize("amount", ["0", "-1", "60.00", "1.005", "ten", "1e3", "NaN", "9" * 40])
async def test_a_refused_refund_changes_nothing_and_says_why(desk: Desk, shop: Shop, amount: str) -> None:
    order = await shop.paid_order()
    answer = await desk.act(order["id"], "refund", amount=amount)
    assert answer.status == 400
    assert "That did not work." in answer.text
    assert answer.offers("/refund")
    assert (await shop.get(f"/v1/orders/{order['id']}/refunds")).body == []


async def test_a_card_number_is_not_taken_as_a_reason(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order()
    answer = await desk.act(order["id"], "refund", reason="card 4242 4242 4242 4242")
    assert answer.status == 400
    assert "4242" not in answer.text
    assert (await shop.get(f"/v1/orders/{order['id']}/refunds")).body == []


async def test_an_order_is_captured_in_part(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order(captureMethod="manual")
    assert (await desk.act(order["id"], "capture", amount="20.00")).status == 303
    after = (await shop.get(f"/v1/orders/{order['id']}")).body
    assert (after["status"], after["amountCaptured"]) == ("captured", 2_000)


@pytest.mark.parametrize("method", ["manual", None])
async def test_an_order_is_cancelled(desk: Desk, shop: Shop, method: str | None) -> None:
    order = await (shop.order() if method is None else shop.paid_order(captureMethod=method))
    assert (await desk.act(order["id"], "cancel")).status == 303
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "cancelled"


async def test_a_declined_payment_is_tried_again(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order("tok_decline_insufficient_funds")
    assert (await desk.act(order["id"], "retry")).status == 303
    after = (await shop.get(f"/v1/orders/{order['id']}")).body
    assert (after["status"], after["attemptCount"]) == ("failed", 2)
    page = await desk.get(f"/dashboard/orders/{order['id']}")
    assert "Tried again at sandbox." in page.text


@pytest.mark.parametrize("token", ["tok_decline_card_blocked", "tok_decline_invalid_card"])
async def test_what_the_bank_would_refuse_again_is_not_tried_again(
    desk: Desk, shop: Shop, token: str, served: Running
) -> None:
    order = await shop.paid_order(token)
    page = await desk.get(f"/dashboard/orders/{order['id']}")
    assert not page.offers("/retry")
    assert "No retry:" in page.text
    answer = await desk.post(f"/dashboard/orders/{order['id']}/retry", page.form("/cancel"))
    assert answer.status == 400
    assert "retry_pointless" in answer.text
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["attemptCount"] == 1
    with pytest.raises(Exception, match="retry_pointless"):
        await retry(served.context, shop.merchant.id, order["id"], wait_s=0)


async def heard(merchant: MerchantServer, event_id: str, times: int) -> None:
    """Wait until a merchant's server has heard of an event so many times."""
    for _ in range(200):
        if len(merchant.of(event_id)) == times:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the event did not come")


async def test_an_event_is_sent_again(desk: Desk, shop: Shop) -> None:
    person = {"Authorization": f"Bearer {shop.token}"}
    async with merchant_server() as merchant:
        await shop.call("PUT", "/api/merchants/me", {"webhookUrl": f"{merchant.url}/hooks"}, auth=person)
        order, other = await shop.paid_order(), await shop.paid_order()
        page = await desk.get(f"/dashboard/orders/{order['id']}")
        form = page.form("/resend")
        await heard(merchant, form["event"], 1)
        answer = await desk.post(f"/dashboard/orders/{order['id']}/resend", form)
        assert answer.location.endswith("?notice=resent")
        await heard(merchant, form["event"], 2)
    foreign = (await desk.get(f"/dashboard/orders/{other['id']}")).form("/resend")
    assert (await desk.post(f"/dashboard/orders/{order['id']}/resend", foreign)).status == 404


async def test_the_story_tells_the_decline_in_words(desk: Desk, shop: Shop) -> None:
    order = await shop.paid_order("tok_decline_insufficient_funds")
    text = (await desk.get(f"/dashboard/orders/{order['id']}")).text
    assert "Attempt 1 at sandbox" in text
    assert "Insufficient funds." in text
    assert "The same card may work another day." in text
    assert "Why this processor" in text


async def test_no_secret_is_on_the_page(desk: Desk, shop: Shop) -> None:
    secret = "a-canary-that-signs-the-sandbox"
    await shop.use_sandbox(webhook_secret=secret)
    order = await shop.paid_order("tok_decline_insufficient_funds")
    for path in (f"/dashboard/orders/{order['id']}", f"/dashboard/orders/{order['id']}.json"):
        text = (await desk.get(path)).text
        for kept in (secret, "whsec_", "sk_test_", shop.key, desk.cookie(), "tok_decline_insufficient_funds"):
            assert kept not in text


async def flagged_order(shop: Shop) -> str:
    """Pay an order and have a person asked to look at it."""
    order_id: str = (await shop.paid_order())["id"]
    async with shop.context.database.transaction() as session:
        await orders.flag_for_review(session, shop.merchant.id, order_id, now=shop.context.now())
    return order_id


async def test_an_order_is_marked_as_reviewed_with_what_was_found(desk: Desk, shop: Shop) -> None:
    order_id = await flagged_order(shop)
    refused = await desk.act(order_id, "review", note="  ")
    assert refused.status == 400
    assert "Say in 1 to 500 characters what was found." in refused.text
    answer = await desk.act(order_id, "review", note="Stripe shows it as paid")
    assert answer.location.endswith("?notice=reviewed")
    page = await desk.get(answer.location)
    assert "off the list of those that need a person" in page.text
    assert not page.offers("/review")
    assert not (await shop.get(f"/v1/orders/{order_id}")).body["needsReview"]


async def test_an_order_is_marked_as_reviewed_from_the_list_of_those_that_wait(desk: Desk, shop: Shop) -> None:
    order_id = await flagged_order(shop)
    page = await desk.get("/dashboard/reconciliation")
    address = f"/dashboard/reconciliation/orders/{order_id}/review"
    form = page.form("/review")
    refused = await desk.post(address, {**form, "note": "x" * 501})
    assert refused.status == 400
    assert "x" * 501 in refused.text
    answer = await desk.post(address, {**form, "note": "settled"})
    assert answer.location == "/dashboard/reconciliation?notice=reviewed"
    assert "No order needs a person." in (await desk.get(answer.location)).text
    again = await desk.post(address, {**form, "note": "settled"})
    assert (again.status, "not_in_review" in again.text) == (400, True)
