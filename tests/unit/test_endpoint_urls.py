"""Endpoint addresses: public ones and the operator's own networks, in a form that every parser reads the same way."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loop.domain.endpoint_urls import MAX_CHARACTERS, Reach, require_endpoint_url
from loop.domain.errors import LoopError

ANYWHERE = Reach(own_host="0.0.0.0", own_port=8000)  # noqa: S104 - as in a container


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example.com/hooks?from=loop",
        "http://shop.example.com:8080",
        "https://shop_1.example.com./",
        "https://xn--bcher-kva.example/hooks",
        "https://1.1.1.1/hooks",
        "https://[2606:4700:4700::1111]:8443/hooks",
        "https://intranet/hooks",  # a name: judged when it is connected to
        "https://localhost.example/",
        "https://3com.example/",
    ],
)
def test_addresses_that_may_be_public_are_taken_as_they_are(url: str) -> None:
    assert require_endpoint_url(url, ANYWHERE) == url


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
        "https://localhost/hooks",
        "https://localhost./hooks",
        "https://LocalHost:8443/",
        "https://shop.localhost/",
        "https://[2606:4700::1%25eth0]/",
        "https://[::ffff:0:10.0.0.1]/",
        "https://[fec0::1]/",
        "http://1.1.1.1/hooks",
        "http://[2606:4700:4700::1111]:8443/hooks",
        "https://1.1.1.1:22/",
    ],
)
def test_other_addresses_are_refused_with_the_field_named(url: str) -> None:
    with pytest.raises(LoopError) as refused:
        require_endpoint_url(url, ANYWHERE)
    assert refused.value.code == "invalid_webhook_url"
    assert refused.value.details[0][0] == "webhookUrl"


def test_the_operators_networks_are_allowed() -> None:
    reach = Reach((ip_network("127.0.0.0/8"), ip_network("fd00::/8")))
    assert require_endpoint_url("http://127.0.0.1:9000/hooks", reach)
    assert require_endpoint_url("http://localhost:9000/hooks", reach)
    assert require_endpoint_url("http://[fd00::1]/hooks", reach)
    with pytest.raises(LoopError):
        require_endpoint_url("http://10.0.0.1/hooks", reach)


@pytest.mark.parametrize(
    ("own_host", "refused"),
    [
        ("0.0.0.0", ["127.0.0.1:8000", "127.0.0.9:8000", "localhost:8000"]),  # noqa: S104 - as in a container
        ("::", ["[::1]:8000", "127.0.0.1:8000"]),
        ("127.0.0.1", ["127.0.0.1:8000"]),
        ("10.0.0.7", ["10.0.0.7:8000"]),
        ("localhost", ["127.0.0.1:8000", "[::1]:8000"]),
    ],
)
def test_loop_is_no_endpoint_of_its_own(own_host: str, refused: list[str]) -> None:
    networks = (ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("10.0.0.0/8"))
    reach = Reach(networks, own_host, 8000)
    for place in refused:
        with pytest.raises(LoopError, match="Loop itself"):
            require_endpoint_url(f"http://{place}/hooks", reach)
    assert require_endpoint_url("http://127.0.0.1:8001/hooks", reach)
    assert require_endpoint_url("http://10.0.0.8:8000/hooks", reach)


def test_a_port_that_is_not_named_is_the_scheme_s() -> None:
    reach = Reach((ip_network("127.0.0.0/8"),), "127.0.0.1", 443)
    with pytest.raises(LoopError, match="Loop itself"):
        require_endpoint_url("https://127.0.0.1/", reach)
    assert require_endpoint_url("http://127.0.0.1/", reach)


def test_the_field_is_named_as_the_request_has_it() -> None:
    with pytest.raises(LoopError) as refused:
        require_endpoint_url("ftp://shop.example/", ANYWHERE, field="url")
    assert refused.value.details[0][0] == "url"


def test_an_address_has_a_longest_length() -> None:
    head = "https://shop.example.com/"
    assert require_endpoint_url(head + "a" * (MAX_CHARACTERS - len(head)), ANYWHERE)
    with pytest.raises(LoopError):
        require_endpoint_url(head + "a" * (MAX_CHARACTERS - len(head) + 1), ANYWHERE)


@given(st.text())
def test_no_text_breaks_the_rule(text: str) -> None:
    for url in (text, f"https://{text}/"):
        try:
            assert require_endpoint_url(url, ANYWHERE) == url
        except LoopError as refused:
            assert refused.code == "invalid_webhook_url"  # noqa: PT017 - being taken is as good an end
