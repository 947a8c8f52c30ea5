"""Endpoint addresses: public ones and the operator's own networks, in a form that every parser reads the same way."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.endpoint_urls import MAX_CHARACTERS, require_endpoint_url
from loop.domain.errors import LoopError


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example.com/hooks?from=loop",
        "http://shop.example.com:8080",
        "https://shop_1.example.com./",
        "https://xn--bcher-kva.example/hooks",
        "https://1.1.1.1/hooks",
        "https://[2606:4700:4700::1111]:8443/hooks",
        "https://localhost/hooks",  # a name: judged when it is connected to
        "https://intranet/hooks",
        "https://3com.example/",
    ],
)
def test_addresses_that_may_be_public_are_taken_as_they_are(url: str) -> None:
    assert require_endpoint_url(url, ()) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shop.example.com/hooks",
        "ftp://shop.example.com/",
        "javascript:alert(1)",
        "https://",
        "https:///hooks",
        "https://user@shop.example.com/",
        "https://user:secret@shop.example.com/",
        "https://shop.example.com/#top",
        "https://shop.example.com/#",
        "https://shop.example.com:0/",
        "https://shop.example.com:70000/",
        "https://shop.example.com:x/",
        "https://shop.example.com/a b",
        "https://shop.example.com\\@127.0.0.1/",
        "https://shop.example.com/\n",
        "https://bücher.example/",
        "https://shop.example.com/\x00",
        "https://-/",
        "https://[::1/",
        "https://127.0.0.1/",
        "https://10.0.0.7/",
        "https://169.254.169.254/latest",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[fe80::1%25eth0]/",
        "https://0.0.0.0/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://127.0.0.1./",
        "https://0177.0.0.1/",
    ],
)
def test_other_addresses_are_refused_with_the_field_named(url: str) -> None:
    with pytest.raises(LoopError) as refused:
        require_endpoint_url(url, ())
    assert refused.value.code == "invalid_webhook_url"
    assert refused.value.details[0][0] == "webhookUrl"


def test_the_operators_networks_are_allowed() -> None:
    allowed = (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))
    assert require_endpoint_url("http://127.0.0.1:9000/hooks", allowed)
    assert require_endpoint_url("http://[fd00::1]/hooks", allowed)
    with pytest.raises(LoopError):
        require_endpoint_url("http://10.0.0.1/hooks", allowed)


def test_an_address_has_a_longest_length() -> None:
    head = "https://shop.example.com/"
    assert require_endpoint_url(head + "a" * (MAX_CHARACTERS - len(head)), ())
    with pytest.raises(LoopError):
        require_endpoint_url(head + "a" * (MAX_CHARACTERS - len(head) + 1), ())


@given(st.text())
def test_no_text_breaks_the_rule(text: str) -> None:
    for url in (text, f"https://{text}/"):
        try:
            assert require_endpoint_url(url, ()) == url
        except LoopError as refused:
            assert refused.code == "invalid_webhook_url"  # noqa: PT017 - being taken is as good an end
