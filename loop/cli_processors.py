"""The commands about processors: merchants' accounts at payment processors, and whether their credentials work."""

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loop.cli_console import AsJson, MerchantArgument, find_merchant, print_done, print_rows, run_work
from loop.domain.errors import invalid

if TYPE_CHECKING:
    from loop.workflows.context import Context

processor_app = typer.Typer(help="Merchants' accounts at payment processors.", no_args_is_help=True)


def _credentials(context: "Context", processor: str) -> dict[str, str]:
    """Read credentials: one JSON object from a pipe, else each field from its variable or a hidden prompt."""
    schema = context.processors.credentials_schema(processor)
    named = {each.name: os.environ.get(_variable(processor, each.name), "") for each in schema}
    if schema and not any(named.values()) and not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text and not any(each.is_required for each in schema):
            return {}
        try:
            given = json.loads(text)
        except ValueError:
            given = None
        if not isinstance(given, dict):
            expected = ", ".join(each.name for each in schema)
            raise invalid("invalid_credentials_fields", f"Pipe in one JSON object with: {expected}.")
        return {str(name): str(value) for name, value in given.items()}
    for each in schema:
        if not named[each.name] and sys.stdin.isatty():
            named[each.name] = str(typer.prompt(each.label, hide_input=each.is_secret, default="", show_default=False))
    return {name: value for name, value in named.items() if value}


def _variable(processor: str, field: str) -> str:
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in field)
    return f"LOOP_{processor}_{words}".upper()


@processor_app.command("set")
def set_processor(
    merchant: MerchantArgument,
    processor: Annotated[str, typer.Argument(help="Such as sandbox or stripe.", metavar="PROCESSOR")],
    *,
    priority: Annotated[int, typer.Option(min=1, max=100, help="1 comes first.")] = 1,
    live: Annotated[bool, typer.Option("--live/--test", help="Whether the account moves real money.")] = False,
    enabled: Annotated[bool, typer.Option("--enabled/--disabled", help="Whether it takes orders.")] = True,
    as_json: AsJson = False,
) -> None:
    """Store a merchant's credentials for a processor, encrypted.

    They come as one JSON object on standard input, or from variables such as LOOP_STRIPE_SECRET_KEY, or are asked for.
    A webhook secret that is replaced goes on counting for 48 hours.

    Example: loop processor set me@example.com sandbox < /dev/null
    """
    from loop.workflows import processor_configs
    from loop.workflows.processor_configs import ConfigChange

    async def work(context: "Context") -> Any:  # noqa: ANN401 - a row, printed below
        owner = await find_merchant(context, merchant)
        change = ConfigChange(is_enabled=enabled, priority=priority, is_test_mode=not live)
        credentials = _credentials(context, processor)
        config = await processor_configs.put(context, owner.id, processor, credentials=credentials, change=change)
        return config, processor_configs.warnings_about(context, config)

    config, warnings = run_work(work, log_level="error")  # the log's warnings are those that are printed here
    shown = {"id": config.id, "processor": config.processor, "testMode": config.is_test_mode}
    print_done(shown, f"The {_mode(config)} account at {processor} is set ({config.id}).", as_json=as_json)
    for warning in warnings:
        typer.echo(warning, err=True)


@processor_app.command("list")
def list_processors(merchant: MerchantArgument, *, as_json: AsJson = False) -> None:
    """List a merchant's processors, without their credentials.

    Example: loop processor list me@example.com
    """
    from loop.workflows import processor_configs

    async def work(context: "Context") -> list[Any]:
        return await processor_configs.list_all(context, (await find_merchant(context, merchant)).id)

    rows = [(c.id, c.processor, c.is_enabled, c.priority, c.is_test_mode) for c in run_work(work)]
    print_rows(("id", "processor", "enabled", "priority", "testMode"), rows, as_json=as_json)


async def _check(context: "Context", config: Any) -> str | None:  # noqa: ANN401 - a row, as above
    from loop.workflows import processor_configs

    return await processor_configs.check(context, config.merchant_id, config.processor, is_test=config.is_test_mode)


Mode = Annotated[
    bool | None, typer.Option("--live/--test", help="Which account is meant; needed where there is one of each mode.")
]


@processor_app.command("test")
def check_processor(
    merchant: MerchantArgument,
    processor: Annotated[
        str | None, typer.Argument(help="Such as stripe; all without it.", metavar="PROCESSOR")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Try the stored credentials at the processors, moving no money; the exit code is 1 when some do not work.

    Example: loop processor test me@example.com stripe
    """
    from loop.domain.errors import not_found
    from loop.workflows import processor_configs

    async def work(context: "Context") -> list[tuple[Any, str | None]]:
        owner = await find_merchant(context, merchant)
        configs = [
            each for each in await processor_configs.list_all(context, owner.id) if processor in (None, each.processor)
        ]
        if processor is not None and not configs:
            raise not_found("processor")
        return [(config, await _check(context, config)) for config in configs]

    checked = run_work(work)
    rows = [(c.id, c.processor, c.is_test_mode, problem is None, problem) for c, problem in checked]
    print_rows(("id", "processor", "testMode", "works", "problem"), rows, as_json=as_json)
    if any(problem is not None for _, problem in checked):
        raise typer.Exit(1)


@processor_app.command("remove")
def remove_processor(
    merchant: MerchantArgument,
    processor: Annotated[str, typer.Argument(help="Such as stripe.", metavar="PROCESSOR")],
    *,
    live: Mode = None,
    as_json: AsJson = False,
) -> None:
    """Take an account away from new payments; those that it has taken are still asked about and refunded.

    Example: loop processor remove me@example.com stripe --test
    """
    from loop.workflows import processor_configs

    async def work(context: "Context") -> Any:  # noqa: ANN401 - a row, as above
        owner = await find_merchant(context, merchant)
        return await processor_configs.remove(context, owner.id, processor, is_test=None if live is None else not live)

    config = run_work(work)
    shown = {"id": config.id, "processor": processor, "testMode": config.is_test_mode, "removed": True}
    print_done(shown, f"The {_mode(config)} account at {processor} takes no new payments.", as_json=as_json)


def _mode(config: Any) -> str:  # noqa: ANN401 - a row, as above
    return "test" if config.is_test_mode else "live"
