"""The JSON that several calls of the dashboard API answer: merchants and the place of a page among all pages."""

from typing_extensions import TypedDict

from loop.domain.failover import LateSuccess
from loop.server.request import Page, time_text
from loop.workflows.merchants import Profile


class MerchantJson(TypedDict):
    """A merchant without any secret."""

    id: str
    name: str
    email: str
    webhookUrl: str | None
    lateSuccess: LateSuccess
    createdAt: str
    updatedAt: str


class PaginationJson(TypedDict):
    """Where a numbered page lies."""

    page: int
    limit: int
    total: int
    totalPages: int


def merchant_json(profile: Profile) -> MerchantJson:
    """Return a merchant without any secret; `webhookUrl` is the address of its first endpoint."""
    merchant, endpoint = profile.merchant, profile.endpoint
    return {
        "id": merchant.id,
        "name": merchant.name,
        "email": merchant.email,
        "webhookUrl": None if endpoint is None else endpoint.url,
        "lateSuccess": merchant.late_success,
        "createdAt": time_text(merchant.created_at),
        "updatedAt": time_text(merchant.updated_at),
    }


def pagination_json(page: Page, total: int) -> PaginationJson:
    """Return where a numbered page lies; an empty list has no pages."""
    return {"page": page.page, "limit": page.limit, "total": total, "totalPages": -(-total // page.limit)}
