"""Accounts: what a merchant's name, e-mail address and password may be."""

import unicodedata
from typing import Final

from loop.domain.errors import invalid

MIN_NAME_CHARACTERS: Final = 2
MAX_NAME_CHARACTERS: Final = 255
MAX_EMAIL_CHARACTERS: Final = 320
MIN_PASSWORD_CHARACTERS: Final = 8
MAX_PASSWORD_CHARACTERS: Final = 100


def normal_email(text: str) -> str:
    """Return the form in which addresses are stored and compared: composed, in lower case, without space around."""
    return unicodedata.normalize("NFC", text).strip().lower()


def require_name(text: str) -> str:
    """Return a name without space around it, or raise `validation_failed`."""
    name = unicodedata.normalize("NFC", text).strip()
    if not MIN_NAME_CHARACTERS <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise _refused("name", f"must have {MIN_NAME_CHARACTERS} to {MAX_NAME_CHARACTERS} printable characters")
    return name


def require_email(text: str) -> str:
    """Return an address in its stored form, or raise `validation_failed`.

    Only a message proves that an address is real; this refuses what cannot be one.
    """
    email = normal_email(text)
    local, _, host = email.partition("@")
    is_address = local and host and "@" not in host and email.isprintable() and " " not in email
    if not is_address or len(email) > MAX_EMAIL_CHARACTERS:
        raise _refused("email", f"must be an e-mail address of at most {MAX_EMAIL_CHARACTERS} characters")
    return email


def require_password(text: str) -> str:
    """Return a password that may be set, or raise `validation_failed`."""
    if not MIN_PASSWORD_CHARACTERS <= len(text) <= MAX_PASSWORD_CHARACTERS:
        raise _refused("password", f"must have {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} characters")
    return text


def _refused(field: str, problem: str) -> Exception:
    return invalid("validation_failed", f"{field}: {problem}.", details=((field, problem),))
