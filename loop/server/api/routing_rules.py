"""Routing rules: where a merchant's payments go, and a dry run that explains where one would."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, NotRequired, cast

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from loop.domain.ids import PREFIX_ORDER, PREFIX_ROUTING_RULE
from loop.domain.money import Money
from loop.domain.routing import Assessment, RoutingDecision
from loop.domain.routing_rules import Conditions, PaymentTraits, Rule, tied_to
from loop.server.auth import acting, authenticate
from loop.server.idempotency import once
from loop.server.operations import Link, Operation, describes
from loop.server.payment_methods import Brand, Country, MethodType, PaymentMethod, ProcessorName
from loop.server.request import (
    Amount,
    Body,
    Currency,
    Text255,
    body,
    context_of,
    json_response,
    parse,
    path_id,
    read_json,
    time_text,
    validation_failed,
)
from loop.storage.routing import StoredRule
from loop.workflows import routing
from loop.workflows.idempotency import Claim
from loop.workflows.routing import SavedRule

MAX_LISTED: Final = 200
"""How many values one condition may list."""

MAX_METADATA: Final = 20
MAX_PRIORITY: Final = 10_000
DEFAULT_PRIORITY: Final = 100

_OneOrMore = Field(min_length=1, max_length=MAX_LISTED)
_MetadataValue = bool | int | float | Annotated[str, Field(max_length=255)]


class RuleConditions(Body):
    """What a payment must be; any of each list. Amounts in minor units, both bounds included."""

    currencies: Annotated[list[Currency], _OneOrMore] | None = None
    amount_min: Amount | None = None
    amount_max: Amount | None = None
    brands: Annotated[list[Brand], _OneOrMore] | None = None
    countries: Annotated[list[Country], _OneOrMore] | None = None
    payment_methods: Annotated[list[MethodType], _OneOrMore] | None = None
    metadata: Annotated[dict[Text255, _MetadataValue], Field(max_length=MAX_METADATA)] | None = None


class RuleBody(Body):
    """A rule: either `processors` in the order in which they are tried, or a `split` of orders by weight."""

    name: Text255
    priority: Annotated[int, Field(ge=1, le=MAX_PRIORITY)] = DEFAULT_PRIORITY
    enabled: bool = True
    conditions: RuleConditions | None = None
    processors: Annotated[list[ProcessorName], Field(max_length=100)] | None = None
    split: Annotated[dict[ProcessorName, int], Field(max_length=100)] | None = None


class ExamplePayment(Body):
    """A payment that is not made: what a dry run routes."""

    amount: Amount
    currency: Currency = "USD"
    order_id: Text255 | None = None
    payment_method: PaymentMethod | None = None
    processor: ProcessorName | None = None
    metadata: dict[str, object] | None = None
    country: Country | None = None
    capture_method: Literal["automatic", "manual"] = "automatic"


class ConditionsJson(TypedDict, total=False):
    """What a payment must be; what is absent asks nothing."""

    currencies: list[str]
    amountMin: int
    amountMax: int
    brands: list[str]
    countries: list[str]
    paymentMethods: list[str]
    metadata: dict[str, object]


class RuleJson(TypedDict):
    """A rule as it can be saved again, with its id and times."""

    id: str
    name: str
    priority: int
    enabled: bool
    conditions: ConditionsJson
    processors: NotRequired[list[str]]
    split: NotRequired[dict[str, int]]
    createdAt: str
    updatedAt: str


class SavedRuleJson(RuleJson):
    """A rule with what is odd about it."""

    warnings: list[str]


class NamedRuleJson(TypedDict):
    """The rule that decided."""

    id: str
    name: str


class ObstacleJson(TypedDict):
    """Why an account may not take a payment."""

    code: str
    message: str


class AssessmentJson(TypedDict):
    """One account: its place among those that may take the payment, and what speaks against it."""

    processor: str
    configId: str
    place: int | None
    obstacles: list[ObstacleJson]


class DecisionJson(TypedDict):
    """Who would take a payment, null for nobody, and everything that was found on the way."""

    processor: str | None
    rule: NamedRuleJson | None
    reasons: list[str]
    candidates: list[AssessmentJson]


class TrialJson(DecisionJson):
    """A dry run; the same `orderId` gives the same answer."""

    orderId: str


_OF_RULE: Final = {"rule_id": "/id"}
_NEXT: Final = [Link(name, _OF_RULE) for name in ("getRoutingRule", "replaceRoutingRule", "removeRoutingRule")]
_EXAMPLE: Final = {"name": "euros", "conditions": {"currencies": ["EUR"]}, "processors": ["sandbox"]}
_ERRORS: Final = ("invalid_currency", "invalid_rule", "invalid_processor", "too_many_rules")


@describes(Operation("listRoutingRules", answer=list[RuleJson]))
async def list_rules(request: Request) -> Response:
    """Answer the merchant's rules in the order in which they are tried."""
    caller = await authenticate(request)
    found = await routing.list_rules(context_of(request), caller.merchant_id)
    return json_response([rule_json(stored) for stored in found])


@describes(
    Operation(
        "createRoutingRule",
        answer=SavedRuleJson,
        status=201,
        body=RuleBody,
        errors=_ERRORS,
        is_keyed=True,
        example=_EXAMPLE,
        links=_NEXT,
    )
)
async def create(request: Request) -> Response:
    """Save a new rule and say what is odd about it."""
    caller = await authenticate(request)
    content = await read_json(request)
    sent = parse(RuleBody, content)
    context = acting(request, caller)
    new_id = context.new_id(PREFIX_ROUTING_RULE)

    async def run(claim: Claim | None) -> Response:
        rule = rule_of(sent, new_id if claim is None else claim.row.subject_id or new_id)
        saved = await routing.save_rule(context, caller.merchant_id, rule, is_new=True)
        return json_response(_saved_json(saved), 201)

    return await once(request, caller, content=content, operation=run, subject_id=new_id)


@describes(Operation("getRoutingRule", answer=RuleJson))
async def get(request: Request) -> Response:
    """Answer one rule."""
    caller = await authenticate(request)
    rule_id = path_id(request, "rule_id", noun="routing rule")
    return json_response(rule_json(await routing.get_rule(context_of(request), caller.merchant_id, rule_id)))


@describes(Operation("replaceRoutingRule", answer=SavedRuleJson, body=RuleBody, errors=_ERRORS, example=_EXAMPLE))
async def replace(request: Request) -> Response:
    """Replace a rule's content and say what is odd about it."""
    caller = await authenticate(request)
    rule_id = path_id(request, "rule_id", noun="routing rule")
    rule = rule_of(await body(request, RuleBody), rule_id)
    saved = await routing.save_rule(acting(request, caller), caller.merchant_id, rule, is_new=False)
    return json_response(_saved_json(saved))


@describes(Operation("removeRoutingRule", status=204))
async def remove(request: Request) -> Response:
    """Remove a rule."""
    caller = await authenticate(request)
    rule_id = path_id(request, "rule_id", noun="routing rule")
    await routing.remove_rule(acting(request, caller), caller.merchant_id, rule_id)
    return Response(status_code=204)


@describes(
    Operation(
        "testRoutingRules",
        answer=TrialJson,
        body=ExamplePayment,
        errors=("invalid_currency",),
        example={"amount": 4999, "currency": "EUR"},
    )
)
async def try_out(request: Request) -> Response:
    """Explain where a payment would go; nothing is charged. The answer's orderId gives the same answer again."""
    caller = await authenticate(request)
    sent = await body(request, ExamplePayment)
    context = context_of(request)
    method = sent.payment_method or PaymentMethod(type="card")
    payment = PaymentTraits(
        order_id=sent.order_id or context.new_id(PREFIX_ORDER),
        amount=Money(sent.amount, sent.currency),
        payment_method=method.type,
        is_manual_capture=sent.capture_method == "manual",
        brand=method.brand,
        country=method.country or sent.country,
        metadata=sent.metadata or {},
        tokens_for=tied_to(method.token, method.tokens or {}),
        is_test=caller.is_test,
    )
    decision = await routing.try_out(context, caller.merchant_id, payment, forced_processor=sent.processor)
    return json_response({"orderId": payment.order_id, **decision_json(decision)})


def rule_of(sent: RuleBody, rule_id: str) -> Rule:
    """Return a rule as it was sent; raises `validation_failed`."""
    if (sent.processors is None) is (sent.split is None):
        raise validation_failed(("processors", "must be given, or split, and not both"))
    split = sent.split or {}
    return Rule(
        id=rule_id,
        name=sent.name,
        priority=sent.priority,
        is_enabled=sent.enabled,
        conditions=Conditions() if sent.conditions is None else _conditions_of(sent.conditions),
        processors=tuple(split if sent.processors is None else sent.processors),
        weights=tuple(split.values()),
    )


def _conditions_of(sent: RuleConditions) -> Conditions:
    return Conditions(
        currencies=tuple(sent.currencies or ()),
        amount_min_minor=sent.amount_min,
        amount_max_minor=sent.amount_max,
        brands=tuple(sent.brands or ()),
        countries=tuple(sent.countries or ()),
        payment_methods=tuple(sent.payment_methods or ()),
        metadata=sent.metadata or {},
    )


def _saved_json(saved: SavedRule) -> SavedRuleJson:
    return {**rule_json(saved.stored), "warnings": list(saved.warnings)}


def rule_json(stored: StoredRule) -> RuleJson:
    """Return a rule as it can be saved again, with its id and times."""
    rule = stored.rule
    split = dict(zip(rule.processors, rule.weights, strict=False))
    shown: RuleJson = {
        "id": rule.id,
        "name": rule.name,
        "priority": rule.priority,
        "enabled": rule.is_enabled,
        "conditions": _conditions_json(rule.conditions),
        "createdAt": time_text(stored.created_at),
        "updatedAt": time_text(stored.updated_at),
    }
    if split:
        shown["split"] = split
    else:
        shown["processors"] = list(rule.processors)
    return shown


def _conditions_json(conditions: Conditions) -> ConditionsJson:
    named = {
        "currencies": list(conditions.currencies),
        "amountMin": conditions.amount_min_minor,
        "amountMax": conditions.amount_max_minor,
        "brands": list(conditions.brands),
        "countries": list(conditions.countries),
        "paymentMethods": list(conditions.payment_methods),
        "metadata": dict(conditions.metadata),
    }
    return cast("ConditionsJson", {name: value for name, value in named.items() if value not in (None, [], {})})


def decision_json(decision: RoutingDecision) -> DecisionJson:
    """Return who would take a payment, null for nobody, and everything that was found on the way."""
    rule = decision.rule
    places = {candidate.processor: place for place, candidate in enumerate(decision.candidates, start=1)}
    return {
        "processor": decision.candidate.processor if decision.candidates else None,
        "rule": None if rule is None else {"id": rule.id, "name": rule.name},
        "reasons": list(decision.reasons),
        "candidates": [_assessment_json(each, places) for each in decision.assessments],
    }


def _assessment_json(assessment: Assessment, places: Mapping[str, int]) -> AssessmentJson:
    candidate = assessment.candidate
    return {
        "processor": candidate.processor,
        "configId": candidate.config_id,
        "place": places.get(candidate.processor),
        "obstacles": [{"code": code, "message": message} for code, message in assessment.obstacles.items()],
    }


routes: Final = [
    Route("/api/routing-rules", list_rules, methods=["GET"]),
    Route("/api/routing-rules", create, methods=["POST"]),
    Route("/api/routing-rules/test", try_out, methods=["POST"]),
    Route("/api/routing-rules/{rule_id}", get, methods=["GET"]),
    Route("/api/routing-rules/{rule_id}", replace, methods=["PUT"]),
    Route("/api/routing-rules/{rule_id}", remove, methods=["DELETE"]),
]
