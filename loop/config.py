"""Every setting of Loop, declared once: where its value may come from, what it may be, and how it is explained."""

import ipaddress
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, cast, get_type_hints

from loop.config_files import (
    SECRET_NAMES,
    SECRETS_FILE,
    generated_secrets,
    looking_around,
    read_toml,
    refuse_unknown,
    require_room,
    sqlite_path_of,
)
from loop.config_forms import (
    BOOL,
    DATABASE_URL,
    HEADERS,
    HTTP_URL,
    NETWORKS,
    ORIGINS,
    PATH,
    REDIS_URL,
    SECRET,
    SECRETS,
    TEXT,
    TOKEN,
    Form,
    Secret,
    find_weakness,
    one_of,
    show,
    whole,
)
from loop.domain.endpoint_urls import Reach
from loop.domain.errors import configuration

__all__ = ["SETTINGS", "Secret", "Settings", "example_toml", "load", "reference_markdown"]

JOB_LEASE_S: Final = 30
"""How long a claimed job is its worker's own, in seconds; every call that a job makes must end sooner."""

RECIPE: Final = "make one with: openssl rand -hex 32"
_RATE: Final = whole(0, 1_000_000)
_AVERAGED: Final = " An average over ten seconds; 0 is no limit."
_CALL_S: Final = whole(1, JOB_LEASE_S - 1, why=f", below the {JOB_LEASE_S} s that a job is leased for")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting's declaration; the name of its field is also its TOML key and its flag."""

    form: Form
    about: str
    default: object = None
    """The value, None for unset, or a function of the values resolved before it and of the environment."""
    sample: str = ""
    """What documents show for a default that is a function, and the example file for none."""
    is_shared: bool = False
    """Whether its name counts in the environment without LOOP_ before it, too."""
    env: str = ""
    """Its only name in the environment, where that is not LOOP_ and the field's."""

    def variables(self, name: str) -> tuple[str, ...]:
        """Return the names in the environment of the setting called `name`, the stronger first."""
        if self.env:
            return (self.env,)
        return (f"LOOP_{name.upper()}", name.upper()) if self.is_shared else (f"LOOP_{name.upper()}",)


@dataclass(frozen=True, slots=True)
class Explanation:
    """One setting's value in words, secrets masked, and where it came from."""

    name: str
    value: str
    source: str


def _default_directory(_: Mapping[str, object], environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_DATA_HOME", "")
    home = environ.get("HOME") or Path.home()
    return Path(base) / "loop" if base.startswith("/") else Path(home) / ".local" / "share" / "loop"


def _default_database_url(values: Mapping[str, object], _: Mapping[str, str]) -> str:
    return f"sqlite:///{values['data_dir']}/loop.db"


def _default_checkout_base_url(values: Mapping[str, object], _: Mapping[str, str]) -> str:
    # 0.0.0.0 and :: mean every address, and are none that a browser can call.
    host = str(values["host"]) if str(values["host"]).strip("0.:") else "127.0.0.1"
    scheme = "https" if values["tls_cert"] else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{values['port']}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """Every setting, resolved and checked; docs/reference/configuration.md is made from these declarations."""

    config: Annotated[
        Path | None, Setting(PATH, "The TOML file. Without it, config.toml in data_dir is read when it is there.")
    ]
    data_dir: Annotated[
        Path,
        Setting(
            PATH,
            "Directory of the SQLite database, of the generated secrets and of config.toml.",
            _default_directory,
            sample="~/.local/share/loop",
        ),
    ]
    database_url: Annotated[
        str,
        Setting(
            DATABASE_URL,
            "The database. A SQLite path is relative after three slashes and absolute after four.",
            _default_database_url,
            is_shared=True,
            sample="sqlite:///<data_dir>/loop.db",
        ),
    ]
    database_pool_size: Annotated[int, Setting(whole(1, 200), "Database connections of one process.", 16)]
    is_database_pooled: Annotated[
        bool,
        Setting(
            BOOL, "Whether PgBouncer, or another pooler that shares connections by transaction, lies before it.", False
        ),
    ]
    redis_url: Annotated[
        str | None,
        Setting(
            REDIS_URL,
            "Redis, by which several processes limit rates together, wake each other and share circuit breakers; "
            "with PostgreSQL only.",
            is_shared=True,
            sample="redis://localhost:6379/0",
        ),
    ]
    jwt_secret: Annotated[
        Secret,
        Setting(SECRET, "Signs the dashboard's tokens. Generated once when the database is SQLite.", is_shared=True),
    ]
    encryption_key: Annotated[
        Secret,
        Setting(
            SECRET,
            "Encrypts the processors' credentials; keep a copy. Generated once when the database is SQLite.",
            is_shared=True,
        ),
    ]
    encryption_keys_previous: Annotated[
        tuple[Secret, ...], Setting(SECRETS, "Earlier keys, so that what they encrypted stays readable.", ())
    ]
    host: Annotated[str, Setting(TEXT, "Address to listen on; 0.0.0.0 in a container.", "127.0.0.1")]
    port: Annotated[int, Setting(whole(1, 65535), "Port to listen on.", 8000, is_shared=True)]
    tls_cert: Annotated[
        Path | None,
        Setting(
            PATH,
            "Certificate chain, in PEM, with which Loop itself ends TLS (1.3 only); with tls_key. "
            "Without both, HTTP is served.",
            sample="/etc/loop/tls/fullchain.pem",
        ),
    ]
    tls_key: Annotated[
        Path | None, Setting(PATH, "The certificate's private key, in PEM.", sample="/etc/loop/tls/privkey.pem")
    ]
    checkout_base_url: Annotated[
        str,
        Setting(
            HTTP_URL,
            "Where customers' browsers reach Loop.",
            _default_checkout_base_url,
            is_shared=True,
            sample="http://<host>:<port>",
        ),
    ]
    cors_origins: Annotated[
        tuple[str, ...], Setting(ORIGINS, "Web pages whose scripts may call the API.", (), is_shared=True)
    ]
    trusted_proxies: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
        Setting(
            NETWORKS,
            "Proxies before Loop, whose X-Forwarded-For and X-Forwarded-Proto count; everybody else's are not read.",
            (),
        ),
    ]
    limit_read_per_s: Annotated[
        int,
        Setting(_RATE, f"Requests a second of one API key, or of one merchant's people, that read.{_AVERAGED}", 1_000),
    ]
    limit_write_per_s: Annotated[int, Setting(_RATE, f"The same for requests that write.{_AVERAGED}", 1_000)]
    limit_pay_per_s: Annotated[
        int,
        Setting(_RATE, f"The same for what moves money: pay, capture, cancel, refund, check out.{_AVERAGED}", 500),
    ]
    limit_sign_in_per_s: Annotated[
        int, Setting(_RATE, f"Requests a second from one network address to register or sign in.{_AVERAGED}", 10)
    ]
    limit_webhook_per_s: Annotated[
        int, Setting(_RATE, f"Webhooks a second from one network address.{_AVERAGED}", 1_000)
    ]
    limit_open_per_s: Annotated[
        int,
        Setting(_RATE, f"Pages, and looks for unknown API keys, a second from one network address.{_AVERAGED}", 200),
    ]
    is_registration_open: Annotated[
        bool, Setting(BOOL, "Whether anybody may register as a merchant.", True, env="LOOP_OPEN_REGISTRATION")
    ]
    access_token_ttl_s: Annotated[int, Setting(whole(60, 2_592_000), "Life of an access token.", 86_400)]
    refresh_token_ttl_s: Annotated[
        int, Setting(whole(60, 31_536_000), "Life of a refresh token, no shorter than an access token's.", 2_592_000)
    ]
    max_attempts_per_order: Annotated[int, Setting(whole(1, 20), "How often payment of one order may be tried.", 3)]
    order_ttl_s: Annotated[
        int, Setting(whole(60, 31_536_000), "How long an unpaid order waits for its customer.", 86_400)
    ]
    processor_timeout_s: Annotated[int, Setting(_CALL_S, "Deadline of one call to a processor.", 20)]
    stripe_api_base: Annotated[
        str, Setting(HTTP_URL, "Where Stripe's API is.", "https://api.stripe.com", is_shared=True)
    ]
    razorpay_api_base: Annotated[
        str, Setting(HTTP_URL, "Where Razorpay's API is.", "https://api.razorpay.com", is_shared=True)
    ]
    webhook_timeout_s: Annotated[int, Setting(_CALL_S, "Deadline of one delivery to a merchant.", 15)]
    webhook_allow_networks: Annotated[
        tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...],
        Setting(
            NETWORKS, "Where merchants' webhooks may lie besides public addresses; 127.0.0.0/8 in development.", ()
        ),
    ]
    keep_events_days: Annotated[
        int,
        Setting(
            whole(7, 3650), "How long events are kept, with their deliveries; what is still to be delivered stays.", 180
        ),
    ]
    keep_attempts_days: Annotated[
        int, Setting(whole(1, 3650), "How long the log of every try to deliver an event is kept.", 30)
    ]
    keep_processor_events_days: Annotated[
        int,
        Setting(
            whole(30, 3650),
            "How long processors' webhooks are kept; one that comes again later is taken for a new one.",
            90,
        ),
    ]
    job_concurrency: Annotated[
        int,
        Setting(
            whole(1, 1000), "Jobs that one process runs at once, three quarters of them for one processor account.", 32
        ),
    ]
    log_level: Annotated[
        str,
        Setting(one_of("debug", "info", "warning", "error"), "The least level that is logged.", "info", is_shared=True),
    ]
    log_format: Annotated[
        str,
        Setting(
            one_of("auto", "console", "json"),
            "How log lines look; auto is console on a terminal and json elsewhere.",
            "auto",
        ),
    ]
    log_file: Annotated[
        Path | None, Setting(PATH, "File that gets the log instead of standard error.", sample="/var/log/loop.log")
    ]
    metrics_token: Annotated[
        Secret | None,
        Setting(TOKEN, "Whoever sends it as Authorization: Bearer may read /metrics; unset, nobody may."),
    ]
    otel_exporter_otlp_endpoint: Annotated[
        str | None,
        Setting(
            HTTP_URL,
            "OpenTelemetry collector that gets spans and metrics by OTLP over HTTP; needs the extra `otel`.",
            is_shared=True,
            sample="http://localhost:4318",
        ),
    ]
    otel_exporter_otlp_headers: Annotated[
        Secret | None, Setting(HEADERS, "What the collector wants to see with them, such as a token.", is_shared=True)
    ]
    otel_service_name: Annotated[str, Setting(TEXT, "Loop's name towards the collector.", "loop", is_shared=True)]
    otel_sample_percent: Annotated[int, Setting(whole(0, 100), "How many of a hundred requests are traced.", 10)]
    is_traceparent_trusted: Annotated[
        bool,
        Setting(
            BOOL,
            "Whether callers' traces go on in Loop, sampled as they say; else a request's own trace links to theirs.",
            False,
            env="LOOP_OTEL_TRUST_TRACEPARENT",
        ),
    ]
    sources: Mapping[str, str] = field(compare=False)
    """Where the value of each setting came from."""

    @property
    def is_sqlite(self) -> bool:
        """Return whether the database is a SQLite file."""
        return self.sqlite_path is not None

    @property
    def sqlite_path(self) -> Path | None:
        """Return the SQLite file's absolute path; None with PostgreSQL."""
        return sqlite_path_of(self.database_url)

    @property
    def webhook_reach(self) -> Reach:
        """Return where merchants' webhooks may go."""
        return Reach(self.webhook_allow_networks, self.host, self.port)

    @property
    def generated_keys_path(self) -> Path | None:
        """Return the secrets file that the encryption keys come from; None when one of them is configured."""
        path = self.data_dir / SECRETS_FILE
        is_generated = self.sources["encryption_key"] == str(path)
        return path if is_generated and self.sources["encryption_keys_previous"] in (str(path), "default") else None

    def explain(self) -> list[Explanation]:
        """Return each setting in declared order: its value with secrets masked, and where it came from."""
        return [Explanation(name, self.shown(name), self.sources[name]) for name in SETTINGS]

    def shown(self, name: str) -> str:
        """Return the value of the setting called `name` as people may read it: without the secrets in it."""
        return show(getattr(self, name), SETTINGS[name].form)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{each.name}={each.value}' for each in self.explain())})"


SETTINGS: Final[Mapping[str, Setting]] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Settings, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
"""Every declaration by name, in the order in which they are resolved and documented."""

_NOTHING: Final[Mapping[str, object]] = {}


@looking_around()
def load(
    flags: Mapping[str, object] = _NOTHING, environ: Mapping[str, str] = os.environ, *, makes: bool = True
) -> Settings:
    """Resolve every setting: flag, else environment, else TOML file, else default; empty and None mean absent.

    With a SQLite database this makes the data directory and, where secrets are not configured, generates them once;
    for whoever only looks nothing is made, and secrets that are not there yet are this process's own.
    Raises a LoopError of kind configuration, whose message says what to do, for anything that must not start.
    """
    refuse_unknown(flags, "flag", known=SETTINGS)
    layers = _Layers(flags, environ, _NOTHING, None)
    path, source = layers.resolve("config", _NOTHING)
    usual = cast("Path", layers.resolve("data_dir", _NOTHING)[0]) / "config.toml"
    if path is None and usual.is_file():
        path, source = usual, "found in the data directory"
    if path is not None:
        layers = _Layers(flags, environ, read_toml(cast("Path", path)), cast("Path", path))
        refuse_unknown(layers.file, str(path), known=[name for name in SETTINGS if name != "config"])
    values, sources = {"config": path}, {"config": source}
    for name in SETTINGS:
        if name not in values:
            values[name], sources[name] = layers.resolve(name, values)
    _refuse_contradictions(values)
    _fill_in_secrets(values, sources, makes=makes)
    _refuse_weak_secrets(values, sources)
    return Settings(**cast("dict[str, Any]", values), sources=sources)


@dataclass(frozen=True, slots=True)
class _Layers:
    flags: Mapping[str, object]
    environ: Mapping[str, str]
    file: Mapping[str, object]
    path: Path | None

    def resolve(self, name: str, values: Mapping[str, object]) -> tuple[object, str]:
        """Return the checked value of the strongest layer that has one, and the name of that layer."""
        setting = SETTINGS[name]
        variable = next((each for each in setting.variables(name) if self.environ.get(each)), "")
        for raw, source in (
            (self.flags.get(name), f"flag --{name.replace('_', '-')}"),
            (self.environ.get(variable), f"environment variable {variable}"),
            (self.file.get(name), str(self.path)),
        ):
            if raw is not None and raw != "":
                return _checked(name, raw, source=source, is_text=source != str(self.path)), source
        default = setting.default
        return (default(values, self.environ) if callable(default) else default), "default"


def _checked(name: str, raw: object, *, source: str, is_text: bool = False) -> object:
    form = SETTINGS[name].form
    try:
        return form.check(form.read(raw) if is_text and isinstance(raw, str) else raw)
    except ValueError:
        seen = "" if form.is_sensitive else f", not {raw!r}"
        raise configuration("invalid_setting", f"{name} ({source}) must be {form.words}{seen}.") from None


def _refuse_contradictions(values: Mapping[str, object]) -> None:
    if values["redis_url"] and sqlite_path_of(values["database_url"]):
        raise configuration(
            "contradicting_settings",
            "redis_url is set, but the database is SQLite, which one process serves without Redis. "
            "Set database_url to postgresql://..., or remove redis_url.",
        )
    if bool(values["tls_cert"]) != bool(values["tls_key"]):
        raise configuration(
            "contradicting_settings",
            "One of tls_cert and tls_key is set. Set both, or neither to leave TLS to a proxy.",
        )
    if cast("int", values["refresh_token_ttl_s"]) < cast("int", values["access_token_ttl_s"]):
        raise configuration(
            "contradicting_settings",
            "refresh_token_ttl_s is below access_token_ttl_s. Raise the first or lower the second.",
        )


def _fill_in_secrets(values: dict[str, object], sources: dict[str, str], *, makes: bool) -> None:
    """Take absent secrets from the generated file where the database is SQLite; refuse their absence elsewhere."""
    missing = [name for name in SECRET_NAMES if values[name] is None]
    database = sqlite_path_of(values["database_url"])
    if database is not None:
        data_dir = cast("Path", values["data_dir"])
        require_room(data_dir, database, makes=makes)
        path = data_dir / SECRETS_FILE
        given, source = generated_secrets(path, database, makes=makes) if missing else (_NOTHING, "")
        for name, raw in given.items():
            if sources[name] == "default":
                values[name], sources[name] = _checked(name, raw, source=source), source
    elif missing:
        raise configuration(
            "missing_secret",
            f"With PostgreSQL set {' and '.join(missing)}, to the same value in every process; {RECIPE}",
        )


def _refuse_weak_secrets(values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    for name in SECRET_NAMES:
        if weakness := find_weakness(cast("Secret", values[name]).reveal()):
            raise configuration("weak_secret", f"{name} ({sources[name]}) {weakness}; {RECIPE}")
    if values["jwt_secret"] == values["encryption_key"]:
        raise configuration("weak_secret", f"jwt_secret and encryption_key are equal; for one of them, {RECIPE}")


_REFERENCE: Final = """# Configuration

Loop needs no configuration: it then keeps everything in its data directory. What you set is taken from the first
of these that has a value, where an empty value counts as none:

1. a flag of the command,
2. an environment variable, first under its name with `LOOP_`,
3. the TOML file, whose keys are the names below,
4. the default.

With a SQLite database and without `jwt_secret` and `encryption_key`, Loop generates both once and keeps them in
`secrets.toml` in the data directory, readable by its owner only. With PostgreSQL both must be set.

| Name | Environment | Default | Meaning |
|---|---|---|---|
{rows}"""


def example_toml() -> str:
    """Return config.example.toml: each key with its meaning, commented out, at its default or at a sample."""
    lines = ["# Settings of Loop. Each line shows the default, or a sample where there is none.\n"]
    for name, setting in SETTINGS.items():
        if name != "config":
            value = setting.sample if setting.default is None or callable(setting.default) else setting.default
            lines.append(f"# {setting.about}\n# Must be {setting.form.words}.\n# {name} = {json.dumps(value)}\n")
    return "\n".join(lines)


def reference_markdown() -> str:
    """Return docs/reference/configuration.md: every setting with its names, default, form and meaning."""
    rows = []
    for name, setting in SETTINGS.items():
        variables = ", ".join(f"`{each}`" for each in setting.variables(name))
        default = setting.sample if callable(setting.default) else show(setting.default, setting.form)
        rows.append(f"| `{name}` | {variables} | `{default}` | {setting.about} Must be {setting.form.words}. |\n")
    return _REFERENCE.format(rows="".join(rows))


if __name__ == "__main__":
    sys.stdout.write({"example": example_toml, "reference": reference_markdown}[sys.argv[1]]())
