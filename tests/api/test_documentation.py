"""The API's document and the page that shows it are served to anybody, the page under a policy of its own."""

import pytest

from tests.api.client import Shop
from tests.api.contract import api_document


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_document_and_its_page_are_served(shop: Shop) -> None:
    served = await shop.get("/openapi.json", auth={})
    assert served.status == 200
    assert served.body == api_document()
    page = await shop.get("/docs", auth={})
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "eval" not in policy
    assert "http" not in policy
    assert (await shop.get("/docs/rapidoc-min.js", auth={})).headers["Content-Type"].startswith("text/javascript")
    for name in ("vendored.json", "..%2Fapp.py", "docs.html"):
        assert (await shop.get(f"/docs/{name}", auth={})).code == "not_found"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_refused_method_is_told_every_method_that_is_taken(shop: Shop) -> None:
    refused = await shop.call("PATCH", "/v1/orders")
    assert refused.code == "method_not_allowed"
    assert refused.headers["Allow"] == "GET, HEAD, POST"
