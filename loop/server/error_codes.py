"""Error codes: every code that Loop answers or ends a command with, its status, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """`status` is HTTP's, None for what only commands and starts end with; `advice` says what to do."""

    status: int | None
    advice: str


_ANSWERED: Final[Mapping[int, Mapping[str, str]]] = {
    400: {
        "attempts_exhausted": "The order was tried as often as it may be; create a new one.",
        "body_too_slow": "The body did not arrive in time; send the request again.",
        "cancel_failed": "The processor refused to cancel; the message says why. Read the order before going on.",
        "capture_exceeds_authorized": "Capture no more than the order's amountAuthorized.",
        "capture_failed": "The processor refused to capture; the message says why. Read the order before going on.",
        "day_not_over": "Compare a day once it is over in UTC.",
        "email_exists": "Sign in with this address, or register another one.",
        "headers_too_large": "Send fewer or shorter headers.",
        "invalid_body": "Send the processor's webhook as it came: its body cannot be read.",
        "invalid_credentials_fields": "Send exactly the credentials that the message names for this processor.",
        "invalid_currency": "Use an ISO 4217 code of three letters.",
        "invalid_http": "Send HTTP/1.1; what came is none.",
        "invalid_idempotency_key": "Send an Idempotency-Key of 1 to 255 printable characters.",
        "invalid_json": "Send one JSON object in UTF-8, within the bounds that the message names.",
        "invalid_mode": "Set X-Loop-Mode to test or live, or leave it out.",
        "invalid_processor": "Use one of the processors that the message names.",
        "invalid_rule": "Change the routing rule as the message says.",
        "invalid_signature": "Compare the account's webhook secret with the one at the processor.",
        "invalid_status": "The order's or session's status does not allow this; read it and decide anew.",
        "invalid_webhook_url": "Use an https:// address that is public, without a user or password.",
        "missing_signature": "Send the processor's signature header.",
        "mode_in_use": "Orders were paid at the account, so it keeps its mode; set the other mode's account beside it.",
        "mode_taken": "There is an account of that mode at this processor; change or remove that one.",
        "movements_not_listed": "This processor lists no movements, so its days cannot be compared.",
        "no_eligible_processor": "Change the payment, the rules or the accounts; the message says why.",
        "no_endpoint": "Add a webhook endpoint that listens to this event, or enable it.",
        "no_pending_secret": "Rotate the secret first; there is none to promote.",
        "no_processor": "Set up a processor account of this mode and enable it.",
        "not_in_review": "Nobody needs to look at the order any more; read it anew.",
        "processor_removed": "The account that took the payment is removed; set it again.",
        "order_expired": "The order's expiresAt is past; create a new one.",
        "query_too_long": "Send a shorter query.",
        "raw_card_data": "Send the processor's token, no card number; an id that passes for one needs a letter.",
        "refund_exceeds_captured": "Refund no more than is left of what was captured.",
        "retry_pointless": "The processor would decline this again; ask for another payment method.",
        "secret_pending": "Promote the pending secret before you rotate again.",
        "too_many_api_keys": "Revoke a key that is not used any more.",
        "too_many_endpoints": "Remove an endpoint that is not used any more.",
        "too_many_headers": "Send fewer headers.",
        "too_many_rules": "Remove a routing rule that is not used any more.",
        "unsupported_by_processor": "The processor cannot do this; the message says what it can.",
        "validation_failed": "Change the fields that `details` names.",
    },
    401: {
        "expired_api_key": "Use another API key.",
        "invalid_api_key": "Use an API key that exists and was not revoked.",
        "invalid_credentials": "Check the e-mail address and the password.",
        "invalid_refresh_token": "Sign in again.",
        "invalid_token": "Refresh the access token, or sign in again.",
        "metrics_token_needed": "Send the configured `metrics_token` as Authorization: Bearer.",
        "missing_credentials": "Send an API key in X-API-Key, or Authorization: Bearer with a key or an access token.",
        "missing_session": "Sign in to the dashboard.",
    },
    403: {
        "first_run_over": "Sign in: this Loop has its first merchant already.",
        "foreign_form": "Send the form from the dashboard itself.",
        "insufficient_scope": "Use a key that has the scope which the message names.",
        "invalid_link": "Start `loop serve` anew and open the link that it prints then.",
        "live_mode_required": "Use a live key, or sign in.",
        "person_required": "Sign in and send the access token; no API key may do this.",
        "registration_closed": "Ask whoever runs this server for an account.",
        "stale_form": "Load the page again and send the form once more.",
    },
    404: {"not_found": "Check the id or address. What belongs to another merchant or mode answers the same."},
    405: {"method_not_allowed": "Use one of the methods that the Allow header names."},
    408: {"head_too_slow": "The headers did not arrive in time; send the request again."},
    409: {
        "idempotency_in_progress": "The same request is still running; send it again after Retry-After seconds.",
        "idempotency_key_reuse": "This key was used for another request; use a new key.",
        "operation_in_progress": "Something else is being done with the order; try again after Retry-After seconds.",
        "previous_attempt_open": "The previous attempt may yet be paid; try again after Retry-After seconds.",
    },
    413: {"body_too_large": "Send a smaller body."},
    429: {
        "rate_limited": "Wait for Retry-After seconds, and send requests more slowly.",
        "too_many_attempts": "Wait for Retry-After seconds before the next try to sign in.",
        "too_many_listeners": "Close some of the dashboard's pages, or load this one again by hand.",
    },
    431: {"head_too_large": "Send a shorter address, shorter headers or a smaller body."},
    500: {"internal_error": "Give the requestId to whoever runs this server; the log says what it was."},
    503: {
        "database_unavailable": "Try again after Retry-After seconds; the operator: see to the database.",
        "not_compared": "Try again later: the processor or the database did not answer.",
        "not_ready": "Send traffic elsewhere until this server is ready.",
        "not_started": "The operator: see in the log what did not start.",
        "processor_unavailable": "Try again later: the processor did not answer.",
        "schema_in_use": "The operator: stop every process of Loop, then run `loop migrate`.",
        "schema_locked": "The operator: end what has long used a table, and run `loop migrate` again.",
        "too_many_movements": "The processor lists more than can be compared at once.",
        "too_many_sign_ins": "Try again after Retry-After seconds.",
        "too_many_transactions": "The day has more transactions than can be compared at once.",
        "webhook_secret_missing": "Set the account's webhookSecret; the processor sends the webhook again.",
    },
}

_ENDED_WITH: Final[Mapping[str, str]] = {
    "already_running": "Stop the other process, or give this one a data directory of its own.",
    "already_set_up": "Edit the configuration file that is there, or remove it first.",
    "backup_damaged": "Use another backup: this one is not whole, or of another version.",
    "backup_exists": "Name a file that is not there yet.",
    "backup_mismatch": "Set database_url to the kind of database that the backup is of.",
    "backup_unwritable": "Make room for the backup, or write it elsewhere.",
    "configured_encryption_key": "Use the key that is configured, or name it as a previous one.",
    "contradicting_settings": "Change the settings that the message names.",
    "database_damaged": "Stop Loop, and bring a backup back with `loop restore FILE --replace`.",
    "database_in_use": "Use an empty database; `loop restore` replaces what is there with --replace.",
    "encryption_key_needed": "Add the key that the message names to encryption_keys_previous.",
    "invalid_setting": "Change the setting as the message says.",
    "keys_rotating": "Let `loop keys rotate` end first.",
    "missing_secret": "Set the secret that the message names.",
    "otel_not_installed": "Install Loop with its extra `otel`, as docs/guides/observability.md says.",
    "nothing_to_back_up": "Make the database first: `loop serve` or `loop migrate`.",
    "port_in_use": "Choose another port, or stop what listens there.",
    "roles_need_postgres": "Leave out --only, or use PostgreSQL.",
    "schema_newer": "Use the version of Loop that made the database, or a later one.",
    "schema_outdated": "Run `loop migrate`.",
    "secrets_exposed": "Make the file readable by its owner only.",
    "tool_failed": "See to what PostgreSQL's program said.",
    "tool_missing": "Install PostgreSQL's client programs (pg_dump, pg_restore).",
    "unknown_setting": "Remove the setting, or mend its name.",
    "unreadable_config": "Mend the configuration file as the message says.",
    "unusable_certificate": "Give a certificate and its private key in PEM that belong together.",
    "unwritable_data_dir": "Make the data directory writable, or choose another one.",
    "unwritable_log_file": "Make the log file writable, or choose another one.",
    "weak_secret": "Use a secret of at least 32 random characters.",
}

ERROR_CODES: Final[Mapping[str, ErrorCode]] = {
    **{code: ErrorCode(status, advice) for status, codes in _ANSWERED.items() for code, advice in codes.items()},
    **{code: ErrorCode(None, advice) for code, advice in _ENDED_WITH.items()},
}
"""Every code. A test compares them with what the code raises."""


def reference_markdown() -> str:
    """Return the reference of error codes."""
    lines = [
        "# Errors",
        "",
        "<!-- Made by docs/generate.py. -->",
        "",
        "An error answers one JSON object: `code`, which is stable, `message`, which says what to do and may change,",
        "`requestId`, which is the answer's `X-Correlation-ID`, and, where fields are wrong, `details` with a `field`",
        'and a `message` each. A declined payment is no error: it answers 200 with `status: "failed"` and an',
        "`errorCode`.",
        "",
        "## Answered over HTTP",
        "",
        "| Status | Code | What to do |",
        "|---|---|---|",
        *(
            f"| {status} | `{code}` | {advice} |"
            for status, codes in _ANSWERED.items()
            for code, advice in codes.items()
        ),
        "",
        "## Ends a command or a start",
        "",
        "Commands end with the codes above too.",
        "",
        "| Code | What to do |",
        "|---|---|",
        *(f"| `{code}` | {advice} |" for code, advice in _ENDED_WITH.items()),
        "",
    ]
    return "\n".join(lines)
