"""The commands about the configuration: making a first one, and saying where each setting came from."""

import os
import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, flags, load_settings, print_record, print_rows
from loop.domain.errors import configuration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loop.config import Settings

POSTGRES_SAMPLE = "postgresql://loop:PASSWORD@localhost:5432/loop"

config_app = typer.Typer(help="Every setting, and where it came from.", no_args_is_help=True)


@config_app.command("explain")
def explain(
    name: Annotated[str | None, typer.Argument(help="One setting; all without it.", metavar="NAME")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show each setting's value, secrets masked, and where it came from: flag, environment, file or default.

    Example: loop config explain database_url
    """
    from loop.config import SETTINGS
    from loop.config_files import refuse_unknown

    if name is not None:
        refuse_unknown({name: None}, "argument", known=SETTINGS)
    settings = load_settings(makes=False)
    rows = [
        (each.name, _in_json(settings, each.name) if as_json else each.value, each.source)
        for each in settings.explain()
        if name in (None, each.name)
    ]
    print_rows(("name", "value", "source"), rows, as_json=as_json)


def _in_json(settings: "Settings", name: str) -> object:
    """Return a setting's value with its type, secrets masked as people see them."""
    value = getattr(settings, name)
    if isinstance(value, tuple):
        return [str(each) for each in value]  # a secret's text is its mask
    return value if value is None or isinstance(value, int) else settings.shown(name)


def init(
    *,
    postgres: Annotated[bool, typer.Option("--postgres", help="For PostgreSQL instead of a SQLite file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a first configuration: a data directory, a commented file with every setting, and the secrets.

    The file is config.toml in the data directory, or what --config names. Nothing that is there is overwritten.

    Example: loop --data-dir /srv/loop init
    """
    from loop.config import SETTINGS, load
    from loop.config_files import SECRETS_FILE

    given = "".join(f"--{name.replace('_', '-')} {shlex.quote(str(value))} " for name, value in flags.items() if value)
    names = SETTINGS["config"].variables("config")
    wanted = flags.get("config") or next((os.environ[each] for each in names if os.environ.get(each)), None)
    own = _for_postgres() if postgres else {}
    others = {name: value for name, value in flags.items() if value is not None and name != "config"}
    settings = load({**others, **own}, {name: value for name, value in os.environ.items() if name not in names})
    path = Path(str(wanted)).expanduser().absolute() if wanted else settings.data_dir / "config.toml"
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_once(path, _filled_in(own))
    shown: dict[str, object] = {"config": path, "dataDir": settings.data_dir}
    if not own:
        shown["secrets"] = settings.data_dir / SECRETS_FILE
    print_record(shown, as_json=as_json)
    if own:
        typer.echo(
            f"Set database_url in {shlex.quote(str(path))}, then: loop {given}migrate && loop {given}doctor", err=True
        )
    else:
        typer.echo(f"Next: loop {given}doctor, then loop {given}serve. Keep a copy of the secrets.", err=True)


def _for_postgres() -> "Mapping[str, str]":
    return {
        "database_url": POSTGRES_SAMPLE,
        "jwt_secret": secrets.token_hex(32),
        "encryption_key": secrets.token_hex(32),
    }


def _filled_in(values: "Mapping[str, str]") -> str:
    """Return the example file with some of its lines in force."""
    from loop.config import example_toml

    text = example_toml()
    for name, value in values.items():
        text = re.sub(rf"(?m)^# {name} = .*$", f'{name} = "{value}"', text)
    return text


def _write_once(path: Path, text: str) -> None:
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise configuration("already_set_up", f"{path} is there already: edit it, or remove it first.") from None
    except OSError as error:
        raise configuration("unwritable_data_dir", f"{path} cannot be made: {error.strerror}.") from error
