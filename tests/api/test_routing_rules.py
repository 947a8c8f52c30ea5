"""Routing rules over HTTP: kept, warned of, refused, tried out, and obeyed by the next payment."""

from typing import Any

from tests.api.client import Shop

PATH = "/api/routing-rules"
RULE_FIELDS = {"id", "name", "priority", "enabled", "conditions", "processors", "createdAt", "updatedAt"}
EVERYTHING: dict[str, Any] = {
    "currencies": ["USD", "EUR"],
    "amountMin": 100,
    "amountMax": 5_000,
    "brands": ["visa", "rupay"],
    "countries": ["IN"],
    "paymentMethods": ["card", "upi"],
    "metadata": {"plan": "pro", "seats": 3, "share": 0.5, "gift": True, "é": "🛒"},
}


def rule(**fields: object) -> dict[str, Any]:
    return {"name": "A rule", "processors": ["sandbox"], **fields}


async def use_stripe(shop: Shop) -> None:
    """Give the shop a Stripe account, the default for its dollars; nothing in here calls it."""
    answer = await shop.post("/api/processors/stripe", {"credentials": {"secretKey": "sk_test_1"}})
    assert answer.status == 200, answer.text


async def test_a_rule_is_created_read_replaced_and_removed(shop: Shop) -> None:
    created = await shop.post(PATH, rule(priority=7, conditions=EVERYTHING))
    assert created.status == 201, created.text
    assert set(created.body) == {*RULE_FIELDS, "warnings"}
    assert created.body["id"].startswith("rul_")
    assert (created.body["priority"], created.body["enabled"], created.body["warnings"]) == (7, True, [])
    assert created.body["conditions"] == EVERYTHING
    path = f"{PATH}/{created.body['id']}"
    read = await shop.get(path)
    assert {**read.body, "warnings": []} == created.body
    assert (await shop.get(PATH)).body == [read.body]
    sent = {"name": "Split", "enabled": False, "split": {"sandbox": 70, "stripe": 30}}
    replaced = await shop.call("PUT", path, sent)
    assert replaced.status == 200, replaced.text
    assert replaced.body["warnings"] == ["stripe is not configured; the rule passes it over."]
    assert {name: replaced.body[name] for name in ("name", "enabled", "split", "conditions", "priority")} == {
        **sent, "conditions": {}, "priority": 100,
    }  # fmt: skip
    assert "processors" not in replaced.body
    assert (replaced.body["id"], replaced.body["createdAt"]) == (read.body["id"], read.body["createdAt"])
    removed = await shop.call("DELETE", path)
    assert (removed.status, removed.text) == (204, "")
    for method, content in (("GET", None), ("PUT", rule()), ("DELETE", None)):
        assert (await shop.call(method, path, content)).code == "not_found"
    assert (await shop.get(PATH)).body == []


async def test_what_a_rule_asks_for_is_compared_as_the_payment_says_it(shop: Shop) -> None:
    conditions = {"currencies": ["usd"], "brands": ["VISA"], "countries": ["in"]}
    created = await shop.post(PATH, rule(conditions=conditions))
    assert created.body["conditions"] == {"currencies": ["USD"], "brands": ["visa"], "countries": ["IN"]}


async def test_another_merchant_s_rule_is_absent(shop: Shop, bare_shop: Shop) -> None:
    created = (await shop.post(PATH, rule())).body
    path = f"{PATH}/{created['id']}"
    absent = await bare_shop.get(f"{PATH}/rul_01234567890123456789abcdef")
    assert (absent.status, absent.code) == (404, "not_found")
    for method, content in (("GET", None), ("PUT", rule()), ("DELETE", None)):
        foreign = await bare_shop.call(method, path, content)
        assert foreign.status == 404
        assert {**foreign.body, "requestId": ""} == {**absent.body, "requestId": ""}
    assert (await bare_shop.get(PATH)).body == []
    assert (await shop.get(path)).status == 200
    assert (await shop.get(PATH, auth={})).code == "missing_credentials"
    assert (await shop.get(PATH, auth={"Authorization": f"Bearer {shop.token}"})).status == 200


BAD_RULES: list[tuple[dict[str, Any], str | None]] = [
    ({}, "name"),
    ({"name": "x"}, "processors"),
    (rule(split={"sandbox": 1}), "processors"),
    (rule(name=""), "name"),
    (rule(priority=0), "priority"),
    (rule(priority=True), "priority"),
    (rule(enabled=1), "enabled"),
    (rule(surprise=1), "surprise"),
    (rule(processors="sandbox"), "processors"),
    (rule(conditions={"currencies": ["XYZ"]}), None),
    (rule(conditions={"currencies": []}), "conditions.currencies"),
    (rule(conditions={"amountMin": 1.5}), "conditions.amountMin"),
    (rule(conditions={"countries": ["India"]}), "conditions.countries.0"),
    (rule(conditions={"brands": ["?"]}), "conditions.brands.0"),
    (rule(conditions={"paymentMethods": ["barter"]}), "conditions.paymentMethods.0"),
    (rule(conditions={"metadata": {"a": [1]}}), None),
    (rule(conditions={"metadata": {"a": None}}), None),
    (rule(conditions={"currencies": ["USD"], "amountMin": 2, "amountMax": 1}), "conditions.amountMax"),
    (rule(conditions={"amountMin": 2}), "conditions.currencies"),
    (rule(processors=[]), "processors"),
    (rule(processors=["sandbox", "sandbox"]), "processors"),
    (rule(processors=["paypal"]), "processors.paypal"),
    (rule(processors=["stripe"]), "processors"),
    ({"name": "x", "split": {"sandbox": 0}}, "split.sandbox"),
    ({"name": "x", "split": {"sandbox": -1}}, "split.sandbox"),
    ({"name": "x", "split": {"sandbox": 0.5}}, "split.sandbox"),
]


async def test_a_rule_that_cannot_be_is_refused_by_the_field(shop: Shop) -> None:
    for content, field in BAD_RULES:
        answer = await shop.post(PATH, content)
        assert answer.status == 400, (content, answer.text)
        assert answer.code in ("validation_failed", "invalid_rule", "invalid_currency")
        if field is not None:
            assert field in [each["field"] for each in answer.body["details"]], (content, answer.text)
    assert (await shop.get(PATH)).body == []


async def test_a_rule_that_is_never_reached_is_named_when_it_is_saved(shop: Shop) -> None:
    first = (await shop.post(PATH, rule(name="All", priority=1))).body
    second = (await shop.post(PATH, rule(name="Dollars", priority=2, conditions={"currencies": ["USD"]}))).body
    said = f"will never be reached: The rule 'All' ({first['id']}) comes first and matches all that it does."
    assert second["warnings"] == [f"The rule 'Dollars' ({second['id']}) {said}"]
    disabled = await shop.call("PUT", f"{PATH}/{first['id']}", rule(name="All", priority=1, enabled=False))
    assert disabled.body["warnings"] == []


async def test_under_one_idempotency_key_one_rule_is_made(shop: Shop) -> None:
    first = await shop.post(PATH, rule(), headers={"Idempotency-Key": "r"})
    again = await shop.post(PATH, rule(), headers={"Idempotency-Key": "r"})
    assert (first.status, again.status, again.text) == (201, 201, first.text)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (await shop.post(PATH, rule(name="B"), headers={"Idempotency-Key": "r"})).code == "idempotency_key_reuse"
    assert len((await shop.get(PATH)).body) == 1


async def test_the_next_payment_obeys_the_rule_and_its_timeline_says_so(shop: Shop) -> None:
    await use_stripe(shop)
    conditions = {"currencies": ["USD"], "metadata": {"plan": "pro"}, "brands": ["visa"], "countries": ["IN"]}
    made = (await shop.post(PATH, rule(name='Pros " 🛒', conditions=conditions))).body
    order = await shop.order(metadata={"plan": "pro"})
    method = {"type": "card", "tokens": {"sandbox": "tok_approve", "stripe": "pm_1"}, "brand": "Visa", "country": "in"}
    paid = await shop.post(f"/v1/orders/{order['id']}/pay", {"paymentMethod": method})
    assert (paid.status, paid.body["status"], paid.body["processor"]) == (200, "captured", "sandbox")
    timeline = await shop.get(f"/v1/orders/{order['id']}/timeline")
    (attempt,) = (entry for entry in timeline.body if entry["kind"] == "attempt")
    assert attempt["details"]["routing"] == [f"rule 'Pros \" 🛒' ({made['id']}) chose sandbox"]
    assert "pm_1" not in timeline.text


async def test_whoever_has_no_token_is_left_out(shop: Shop) -> None:
    await use_stripe(shop)
    order = await shop.order()
    path = f"/v1/orders/{order['id']}/pay"
    refused = await shop.post(path, {"paymentMethod": {"type": "card", "tokens": {"razorpay": "token_1"}}})
    assert (refused.status, refused.code) == (400, "no_eligible_processor")
    assert refused.body["details"] == [
        {"field": name, "message": "no token for it was given"} for name in ("sandbox", "stripe")
    ]
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["status"] == "pending"
    tokens = {"razorpay": "token_1", "sandbox": "tok_approve"}
    paid = await shop.post(path, {"paymentMethod": {"type": "card", "tokens": tokens}})
    assert (paid.body["status"], paid.body["processor"]) == ("captured", "sandbox")


BAD_METHODS: list[dict[str, Any]] = [
    {"type": "card", "tokens": {f"p{n}": "t" for n in range(11)}},
    {"type": "card", "tokens": {"": "t"}},
    {"type": "card", "tokens": {"stripe": 1}},
    {"type": "card", "tokens": ["pm_1"]},
    {"type": "card", "brand": ""},
    {"type": "card", "country": "IND"},
    {"type": "card", "tokens": {"stripe": "4242424242424242"}},
]


async def test_a_bad_payment_method_is_refused(shop: Shop) -> None:
    order = await shop.order()
    for method in BAD_METHODS:
        refused = await shop.post(f"/v1/orders/{order['id']}/pay", {"paymentMethod": method})
        assert refused.status == 400, (method, refused.text)
        assert refused.code in ("validation_failed", "raw_card_data")
    assert (await shop.get(f"/v1/orders/{order['id']}")).body["attemptCount"] == 0


async def test_a_dry_run_explains_its_answer_and_charges_nothing(shop: Shop) -> None:
    await use_stripe(shop)
    made = (await shop.post(PATH, rule(name="Pros", conditions={"metadata": {"plan": "pro"}}))).body
    path = f"{PATH}/test"
    plain = await shop.post(path, {"amount": 49})
    assert plain.status == 200, plain.text
    assert plain.body["orderId"].startswith("ord_")
    assert (plain.body["processor"], plain.body["rule"]) == ("sandbox", None)
    assert plain.body["reasons"] == [
        "stripe left out: 0.49 USD is below its minimum of 0.50 USD",
        "stripe, the default for USD, is not available",
        "sandbox: it is the only one",
    ]
    sandbox, stripe = plain.body["candidates"]
    assert (sandbox["processor"], sandbox["place"], sandbox["obstacles"]) == ("sandbox", 1, [])
    assert sandbox["configId"].startswith("pcf_")
    assert (stripe["processor"], stripe["place"]) == ("stripe", None)
    assert stripe["obstacles"] == [{"code": "minimum", "message": "0.49 USD is below its minimum of 0.50 USD"}]

    ruled = (await shop.post(path, {"amount": 50, "metadata": {"plan": "pro"}, "orderId": "ord_1"})).body
    assert (ruled["processor"], ruled["orderId"]) == ("sandbox", "ord_1")
    assert ruled["rule"] == {"id": made["id"], "name": "Pros"}
    assert [each["place"] for each in ruled["candidates"]] == [1, 2]

    upi = {"amount": 50, "paymentMethod": {"type": "upi", "tokens": {"stripe": "pm_1"}}, "processor": "stripe"}
    nobody = await shop.post(path, upi)
    assert (nobody.status, nobody.body["processor"]) == (200, None)
    assert [each["code"] for each in nobody.body["candidates"][1]["obstacles"]] == ["payment_method"]
    assert [each["code"] for each in nobody.body["candidates"][0]["obstacles"]] == ["no_token"]
    assert (await shop.get("/v1/orders")).body["data"] == []


async def test_a_dry_run_of_one_order_has_one_answer(shop: Shop) -> None:
    await use_stripe(shop)
    await shop.post(PATH, {"name": "Half", "split": {"sandbox": 1, "stripe": 1}})
    found: dict[str, str] = {}
    for number in [*range(12), *range(12)]:
        example = {"amount": 100, "orderId": f"ord_{number}"}
        answer = (await shop.post(f"{PATH}/test", example)).body
        assert found.setdefault(answer["orderId"], answer["processor"]) == answer["processor"]
    assert set(found.values()) == {"sandbox", "stripe"}


async def test_a_bad_example_is_refused(shop: Shop) -> None:
    bad: list[dict[str, Any]] = [{}, {"amount": 0}, {"amount": 1, "currency": "XYZ"}, {"amount": 1, "x": 1}]
    for content in bad:
        answer = await shop.post(f"{PATH}/test", content)
        assert (answer.status, answer.code in ("validation_failed", "invalid_currency")) == (400, True)
