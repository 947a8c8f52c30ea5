"""Payment methods as requests name them: what the customer pays with, and the conditions that ask about it."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from loop.server.request import Body, Text255

MAX_TOKENS: Final = 10
"""For how many processors one payment may bring a token."""

MethodType = Literal["card", "upi", "netbanking", "wallet"]
Country = Annotated[str, Field(pattern=r"^[A-Za-z]{2}$"), AfterValidator(str.upper)]
"""An ISO 3166-1 code of two letters, in upper case once checked."""

Brand = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_ -]{0,39}$"), AfterValidator(str.lower)]
"""A card's scheme, such as visa, in lower case once checked."""

ProcessorName = Annotated[str, Field(min_length=1, max_length=40)]


class PaymentMethod(Body):
    """How the customer pays; a token is a processor's own name for the card, never the card.

    `tokens` holds one for each processor that has made one, and goes before `token`.
    """

    type: MethodType
    token: Text255 | None = None
    tokens: Annotated[dict[ProcessorName, Text255], Field(max_length=MAX_TOKENS)] | None = None
    brand: Brand | None = None
    country: Country | None = None
