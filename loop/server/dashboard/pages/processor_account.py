"""One processor: the form that connects it, or its account with how that fares and what can be done with it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loop.domain.errors import ErrorKind, LoopError, not_found
from loop.processors.base import CredentialField
from loop.server.api.processors import NewConfig, config_json, webhook_address
from loop.server.dashboard.drafts import Draft
from loop.server.dashboard.frames import Page, acts, page_routes, render
from loop.server.dashboard.pages.processors import HERE, called, health_json, health_of, may_connect, of_mode
from loop.server.dashboard.viewers import Action, Sent, Viewer, acting_as
from loop.server.pages import see_other
from loop.server.request import parse, path_id, query_of, validation_failed
from loop.storage.processor_configs import ProcessorConfig
from loop.workflows import processor_configs
from loop.workflows.context import Context
from loop.workflows.processor_configs import KEPT_AFTER_REMOVAL, WEBHOOK_SECRET, ConfigChange

MAX_PRIORITY: Final = 100
CREDENTIAL: Final = "credentials."
"""How the names of the fields begin that hold credentials."""

NOTICES: Final = {
    "connected": "The account is connected. Test it, and paste its webhook address at the processor.",
    "renewed": "The credentials were replaced. Test them.",
    "enabled": "The account takes payments again.",
    "disabled": "The account takes no new payment. What it has taken goes on.",
    "moved": "The priority was changed.",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """What a processor said of an account's credentials; `wrong` is None when they work."""

    wrong: str | None


async def _found(request: Request, viewer: Viewer) -> tuple[str, ProcessorConfig | None]:
    """Return the processor that the address names, and its account of this mode; one that can have none is none."""
    context, name = acting_as(request, viewer), path_id(request, "name", noun="processor")
    config = next((each for each in await of_mode(context, viewer) if each.processor == name), None)
    if config is None and (name not in context.processors.names() or not may_connect(context, viewer, name)):
        raise not_found("processor")
    return name, config


def _schema(context: Context, name: str) -> tuple[CredentialField, ...]:
    """Return the credentials that a processor asks for; none where it is not installed any more."""
    return context.processors.credentials_schema(name) if name in context.processors.names() else ()


async def show(request: Request, viewer: Viewer, *, draft: Draft | None = None, checked: Checked | None = None) -> Page:
    """Show a processor's account, or how to connect it; after a form that was refused, with what was wrong."""
    context = acting_as(request, viewer)
    name, config = await _found(request, viewer)
    configs, schema = await of_mode(context, viewer), _schema(context, name)
    draft = draft or Draft()
    values = {
        "name": name,
        "title": called(name),
        "schema": schema,
        "draft": draft,
        "config": config,
        "max_priority": MAX_PRIORITY,
        "kept_days": KEPT_AFTER_REMOVAL.days,
    }
    if config is None:
        values["priority"] = min(MAX_PRIORITY, max((each.priority for each in configs), default=0) + 1)
        fields = [_field_json(each) for each in schema]
        return Page("processor_new.html", "processors", values, {"credentials": fields}, draft.status)
    health = (await health_of(context, viewer, [config]))[config.id]
    values |= {
        "health": health,
        "is_first": config.id == next((each.id for each in configs if each.is_enabled), None),
        "webhook_address": webhook_address(context, config),
        "takes_webhooks": any(each.name == WEBHOOK_SECRET for each in schema),
        "warnings": processor_configs.warnings_about(context, config),
        "checked": checked,
        "notice": NOTICES.get(query_of(request).get("notice", ""))
        if draft.problem is None and checked is None
        else None,
    }
    json = {**config_json(context, config), "lately": health_json(health)}
    return Page("processor_account.html", "processors", values, json, draft.status)


def _field_json(field: CredentialField) -> dict[str, object]:
    return {"name": field.name, "label": field.label, "required": field.is_required, "secret": field.is_secret}


# What is done with it. Setting something twice is setting it once, so these forms need no key; what was typed into
# them is not even kept as a hash.

Doing = Callable[[Context, Sent, str], Awaitable[str]]
"""Does what a form asks for with the account at a processor; returns the address of what is shown then."""


def _typed(sent: Sent, schema: tuple[CredentialField, ...]) -> dict[str, str]:
    given = {each.name: sent.fields.get(f"{CREDENTIAL}{each.name}", "").strip() for each in schema}
    return {name: value for name, value in given.items() if value}


def _priority(sent: Sent) -> int:
    text = sent.fields.get("priority", "").strip()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:4]) <= MAX_PRIORITY:
        raise validation_failed(("priority", f"must be a whole number from 1 to {MAX_PRIORITY}; 1 is the first choice"))
    return int(text[:4])


async def connect(context: Context, sent: Sent, name: str) -> str:
    """Connect an account of the mode that is shown."""
    viewer, priority = sent.viewer, _priority(sent)
    typed = parse(NewConfig, {"credentials": _typed(sent, _schema(context, name))})
    change = ConfigChange(True, priority, viewer.is_test)
    await processor_configs.put(context, viewer.merchant_id, name, credentials=typed.credentials, change=change)
    return f"{HERE}/{name}?notice=connected"


async def renew(context: Context, sent: Sent, name: str) -> str:
    """Replace the credentials that were typed; the others stay."""
    config = await _config(context, sent.viewer, name)
    given = _typed(sent, _schema(context, name))
    if not given:
        raise validation_failed(("credentials", "type at least one of them; what is left empty stays"))
    typed = parse(NewConfig, {"credentials": given})
    change = ConfigChange(config.is_enabled, config.priority, config.is_test_mode)
    await processor_configs.put(
        context, sent.viewer.merchant_id, name, credentials=typed.credentials, change=change, keeps_others=True
    )
    return f"{HERE}/{name}?notice=renewed"


async def _config(context: Context, viewer: Viewer, name: str) -> ProcessorConfig:
    found = [each for each in await of_mode(context, viewer) if each.processor == name]
    if not found:
        raise not_found("processor")
    return found[0]


async def _change(context: Context, sent: Sent, name: str, *, change: ConfigChange, notice: str) -> str:
    viewer = sent.viewer
    await processor_configs.update(context, viewer.merchant_id, name, change=change, is_test=viewer.is_test)
    return f"{HERE}/{name}?notice={notice}"


async def switch(context: Context, sent: Sent, name: str, *, is_on: bool) -> str:
    """Have an account take payments, or none."""
    notice = "enabled" if is_on else "disabled"
    return await _change(context, sent, name, change=ConfigChange(is_enabled=is_on), notice=notice)


async def move(context: Context, sent: Sent, name: str) -> str:
    """Change which choice an account is."""
    return await _change(context, sent, name, change=ConfigChange(priority=_priority(sent)), notice="moved")


async def remove(context: Context, sent: Sent, name: str) -> str:
    """Remove an account."""
    await processor_configs.remove(context, sent.viewer.merchant_id, name, is_test=sent.viewer.is_test)
    return f"{HERE}?notice=removed"


def _does(doing: Doing) -> Action:
    async def act(request: Request, sent: Sent) -> Response:
        context = acting_as(request, sent.viewer)
        name, _ = await _found(request, sent.viewer)
        try:
            address = await doing(context, sent, name)
        except LoopError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                raise
            draft = Draft(_kept(sent, _schema(context, name)), error)
            return render(await show(request, sent.viewer, draft=draft), sent.viewer)
        return see_other(address)

    return act


def _kept(sent: Sent, schema: tuple[CredentialField, ...]) -> Mapping[str, str]:
    """Return what may be shown again of what was typed: nothing secret, and nothing that is no field of the form."""
    shown = {"priority", *(f"{CREDENTIAL}{each.name}" for each in schema if not each.is_secret)}
    return {name: value for name, value in sent.fields.items() if name in shown}


async def try_out(request: Request, sent: Sent) -> Response:
    """Ask the processor whether the credentials work, and show what it said."""
    viewer = sent.viewer
    name, _ = await _found(request, viewer)
    wrong = await processor_configs.check(acting_as(request, viewer), viewer.merchant_id, name, is_test=viewer.is_test)
    return render(await show(request, viewer, checked=Checked(wrong)), viewer)


_ONE: Final = f"{HERE}/{{name}}"
routes: Final[list[Route]] = [
    *page_routes(_ONE, show),
    *(
        Route(f"{_ONE}/{name}", acts(_does(doing)), methods=["POST"])
        for name, doing in (
            ("connect", connect),
            ("credentials", renew),
            ("enable", partial(switch, is_on=True)),
            ("disable", partial(switch, is_on=False)),
            ("priority", move),
            ("remove", remove),
        )
    ),
    Route(f"{_ONE}/test", acts(try_out), methods=["POST"]),
]
