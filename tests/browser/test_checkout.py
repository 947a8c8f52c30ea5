"""The checkout page in a browser: paid at each processor, declined, confirmed at a bank, and nothing left to chance."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser

from tests.browser.checkout_world import Street, Theme, Visit, new_street

PAGE_BYTES_MAX = 150_000


@pytest.fixture
async def street(browser: Browser, sqlite_database_url: str, tmp_path: Path) -> AsyncIterator[Street]:
    """Yield a shop without any processor, on a Loop of its own."""
    async with new_street(browser, sqlite_database_url, tmp_path) as street:
        yield street


async def choose_card(visit: Visit, card: str) -> None:
    """Pick a test card in Stripe's frame, once the form is ready for it."""
    await visit.page.locator("#stripe button:not([disabled])").wait_for()
    await visit.page.frame_locator("#stripe-fields iframe").locator("#card").select_option(label=card)


async def pay_with_card(visit: Visit, card: str) -> None:
    await choose_card(visit, card)
    await visit.press("Pay €49.99")


async def test_paid_at_the_sandbox(street: Street) -> None:
    await street.connect("sandbox")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.reads("Tea & cake")
        await visit.press("Pay €49.99")
        await visit.press("Approve the payment")
        assert await visit.arrives(street.thanks) == f"{street.thanks}{session['id']}"
        assert visit.troubles == []
    assert (await street.order(session))["status"] == "captured"


async def test_paid_at_stripe(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await pay_with_card(visit, "Visa: pays")
        await visit.arrives(street.thanks)
        assert visit.troubles == []
        assert await visit.measured() <= PAGE_BYTES_MAX
    assert (await street.order(session))["status"] == "captured"
    assert street.paid_amounts() == [4999]


async def test_paid_at_razorpay(street: Street) -> None:
    await street.connect("razorpay")
    session = await street.session(amount=50_000, currency="INR")
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay ₹500.00")
        await visit.reads("Razorpay takes this payment")
        await visit.press("Pay ₹500.00")
        await visit.page.frame_locator(".razorpay-checkout-frame").get_by_text("UPI: pays").click()
        await visit.arrives(street.thanks)
        assert visit.troubles == []
        assert await visit.measured() <= PAGE_BYTES_MAX
    assert (await street.order(session))["status"] == "captured"
    assert street.paid_amounts() == [50_000]


async def test_declined_for_the_card_s_sake_is_tried_again_on_the_same_payment(street: Street) -> None:
    await street.connect("stripe", "sandbox")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await pay_with_card(visit, "Visa: not enough money")
        await visit.reads("There is not enough money available.")
        await pay_with_card(visit, "Visa: pays")
        await visit.arrives(street.thanks)
    order = await street.order(session)
    assert (order["status"], order["processor"], order["attemptCount"]) == ("captured", "stripe", 1)
    assert street.paid_amounts() == [4999]


async def test_a_debit_that_the_bank_returns_is_paid_otherwise_on_the_same_page(street: Street) -> None:
    await street.connect("stripe", "sandbox")
    session = await street.session(currency="USD")
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay $49.99")
        await choose_card(visit, "Bank account: refuses in days")
        await visit.press("Pay $49.99")
        await visit.reads("Your payment is being processed.")
        reference = (await street.order(session))["processorOrderId"]
        decided = f"{street.stub.url}/_control/intents/{reference}/decide"
        async with street.shop.session.post(decided) as answer:
            answer.raise_for_status()
        await visit.reads("There is not enough money available.")
        await choose_card(visit, "Visa: pays")
        await visit.press("Pay $49.99")
        await visit.arrives(street.thanks)
        assert visit.troubles == []
    assert street.paid_amounts() == [4999]


async def test_declined_so_that_another_may_accept_is_tried_again_at_the_next_processor(street: Street) -> None:
    await street.connect("stripe", "sandbox")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await pay_with_card(visit, "Visa: declined")
        await visit.reads("The payment was declined.")
        assert visit.page.url == session["url"]
        await visit.press("Try again: pay €49.99")
        await visit.press("Approve the payment")
        await visit.arrives(street.thanks)
    order = await street.order(session)
    assert (order["status"], order["processor"], order["attemptCount"]) == ("captured", "sandbox", 2)
    assert street.paid_amounts() == []
    cancelled = [entry for entry in street.stub.requests.seen if entry["path"].endswith("/cancel")]
    assert len(cancelled) == 1


async def test_declined_at_the_only_processor_is_tried_again_there(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await pay_with_card(visit, "Visa: declined")
        await visit.reads("The payment was declined.")
        await pay_with_card(visit, "Visa: pays")
        await visit.arrives(street.thanks)
    assert (await street.order(session))["attemptCount"] == 1
    assert street.paid_amounts() == [4999]


async def test_declined_at_razorpay_is_tried_again_there(street: Street) -> None:
    await street.connect("razorpay", "sandbox")
    session = await street.session(amount=50_000, currency="INR")
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay ₹500.00")
        await visit.press("Pay ₹500.00")
        frame = visit.page.frame_locator(".razorpay-checkout-frame")
        await frame.get_by_text("Card: not enough money").click()
        await frame.locator("[role=status]:not(:empty)").wait_for()
        await frame.get_by_text("Close").click()
        await visit.reads("There is not enough money available.")
        await visit.press("Pay ₹500.00")
        await visit.page.frame_locator(".razorpay-checkout-frame").get_by_text("UPI: pays").click()
        await visit.arrives(street.thanks)
    order = await street.order(session)
    assert (order["status"], order["attemptCount"]) == ("captured", 1)


@pytest.mark.parametrize("passes", [True, False])
async def test_a_bank_s_question_is_answered_and_the_customer_comes_back(street: Street, *, passes: bool) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(f"{session['url']}?lang=de")
        await visit.press("bezahlen")
        await choose_card(visit, "Visa: asks its holder")
        await visit.press("bezahlen")
        await visit.arrives(street.stub.url)
        await visit.page.click("#authenticate" if passes else "#fail")
        if passes:
            await visit.arrives(street.thanks)
        else:
            await visit.reads("Ihre Bank konnte nicht bestätigen")  # and still in the language that was chosen
    assert (await street.order(session))["status"] == ("captured" if passes else "requires_action")
    assert street.paid_amounts() == ([4999] if passes else [])


async def test_no_card_is_said_by_the_form_and_nothing_is_asked_of_the_bank(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await choose_card(visit, "No card yet")
        await visit.press("Pay €49.99")
        await choose_card(visit, "Visa: pays")  # the form is usable again
        await visit.press("Pay €49.99")
        await visit.arrives(street.thanks)
    assert street.paid_amounts() == [4999]


async def test_an_expired_page_says_so_also_where_it_was_open(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await choose_card(visit, "Visa: pays")
        await street.shop.post(f"/v1/checkout/sessions/{session['id']}/expire")
        await visit.press("Pay €49.99")
        await visit.reads("The time to pay here is over.")
        assert await visit.page.locator("form").count() == 0
    assert street.paid_amounts() == []


async def test_a_paid_page_pays_no_more_after_reload_and_back(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await pay_with_card(visit, "Visa: pays")
        await visit.arrives(street.thanks)
        await visit.page.go_back()
        await visit.reads("This is paid. Thank you.")
        await visit.page.reload()
        await visit.reads("This is paid. Thank you.")
        assert await visit.page.locator("form").count() == 0
        await visit.press("Back to the shop")
        await visit.arrives(street.thanks)
    assert street.paid_amounts() == [4999]


async def test_a_double_click_pays_once(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.page.locator("main button").dblclick()
        await choose_card(visit, "Visa: pays")
        await visit.page.locator("#stripe button").dblclick()
        await visit.arrives(street.thanks)
        assert visit.troubles == []
    assert (await street.order(session))["attemptCount"] == 1
    assert street.paid_amounts() == [4999]


async def test_two_tabs_pay_once(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.customer() as context:
        first, second = await street.window(context), await street.window(context)
        for tab in (first, second):
            await tab.page.goto(session["url"])
        await first.press("Pay €49.99")
        await choose_card(first, "Visa: pays")
        await second.press("Pay €49.99")
        await choose_card(second, "Visa: pays")
        await first.press("Pay €49.99")
        await first.arrives(street.thanks)
        await second.press("Pay €49.99")
        await second.reads("This is paid. Thank you.")
    assert (await street.order(session))["attemptCount"] == 1
    assert street.paid_amounts() == [4999]


async def test_without_script_the_sandbox_and_razorpay_take_payments_and_stripe_says_that_it_cannot(
    street: Street,
) -> None:
    await street.connect("sandbox")
    session = await street.session()
    async with street.visit(has_script=False) as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await visit.press("Approve the payment")
        await visit.arrives(street.thanks)
    await street.connect("razorpay")
    session = await street.session(amount=50_000, currency="INR")
    async with street.visit(has_script=False) as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay ₹500.00")
        await visit.press("Pay ₹500.00")
        await visit.press("success@razorpay")
        await visit.press("Back to the shop")
        await visit.arrives(street.thanks)
    assert street.paid_amounts() == [50_000]
    await street.connect("stripe")
    session = await street.session(currency="USD")
    async with street.visit(has_script=False) as visit:
        await visit.page.goto(session["url"])
        await visit.press("Pay $49.99")
        said = await visit.page.locator("noscript p").inner_text()  # which a search for texts passes over
        assert said.startswith("This payment is taken by Stripe, whose form needs JavaScript.")
        assert not await visit.page.locator("#stripe").is_visible()


async def test_a_processor_s_script_that_does_not_come_is_said_and_razorpay_takes_the_other_way(street: Street) -> None:
    await street.connect("stripe")
    session = await street.session()
    async with street.customer() as context:
        await context.route("https://js.stripe.com/**", lambda route: route.abort())
        await context.route("https://checkout.razorpay.com/**", lambda route: route.abort())
        visit = await street.window(context)
        await visit.page.goto(session["url"])
        await visit.press("Pay €49.99")
        await visit.reads("Stripe, who takes this payment, cannot be reached.")
        await street.connect("razorpay")
        session = await street.session(amount=50_000, currency="INR")
        await visit.page.goto(session["url"])
        await visit.press("Pay ₹500.00")
        await visit.press("Pay ₹500.00")
        await visit.reads("Test checkout")
        assert visit.page.url.startswith(street.stub.url)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_everybody_can_use_it(street: Street, *, theme: Theme, width: int) -> None:
    """Check with axe, in a light and a dark browser, on a phone and a desk."""
    await street.connect("sandbox", "stripe", "razorpay")
    async with street.visit(theme=theme, width=width) as visit:
        session = await street.session(currency="INR")
        for rule_first in ("stripe", "razorpay", "sandbox"):
            await street.prefer(rule_first)
            session = await street.session(currency="INR")
            await visit.page.goto(session["url"])
            assert await visit.findings() == []
            await visit.press("Pay ₹49.99")
            await visit.page.wait_for_load_state("networkidle")
            assert await visit.findings() == [], rule_first
        await visit.press("Decline the payment")
        await visit.reads("The payment was declined.")
        assert await visit.findings() == []
        await visit.page.goto(f"{session['url']}?lang=hi")
        assert await visit.findings() == []
        ways: tuple[Literal["expire", "pay"], ...] = ("expire", "pay")
        for name in ways:
            over = await street.session()
            await street.end(over, name)
            await visit.page.goto(over["url"])
            assert await visit.findings() == [], name
        assert visit.troubles == []


async def test_the_keyboard_is_enough_and_trouble_is_where_the_focus_is(street: Street) -> None:
    await street.connect("sandbox")
    session = await street.session()
    async with street.visit() as visit:
        await visit.page.goto(session["url"])
        await visit.page.keyboard.press("Tab")
        await visit.page.keyboard.press("Enter")
        await visit.reads("Pick how the payment ends")
        await visit.page.keyboard.press("Tab")
        await visit.page.keyboard.press("Tab")
        await visit.page.keyboard.press("Enter")
        await visit.reads("The payment was declined.")
        assert await visit.page.evaluate("document.activeElement.getAttribute('role')") == "alert"
        await visit.page.keyboard.press("Tab")
        assert "Try again" in await visit.page.evaluate("document.activeElement.textContent")
