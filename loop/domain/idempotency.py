"""Idempotency keys that Loop sends to processors: derived, so that a repeat after a crash carries the same one."""

import base64
import hashlib

PREFIX = "lpi_"


def processor_key(config_id: str, subject_id: str, *, operation: str) -> str:
    """Return the key of one operation on one attempt or refund: `lpi_` and 32 characters of base 32.

    It fits Stripe (up to 255 characters) and Razorpay's refunds (10 or more of letters, digits, `-`, `_`). The
    parameters are not part of it: a repeat that differs must be refused by the processor, not become a second charge.
    """
    digest = hashlib.sha256(f"{config_id}\x1f{subject_id}\x1f{operation}".encode()).digest()
    return PREFIX + base64.b32encode(digest).decode("ascii")[:32].lower()
