"""The attempt table: knowledge only grows, and every cell is written down."""

from itertools import product
from typing import get_args

import pytest

from loop.domain import attempts
from loop.domain.attempts import (
    LIVE_STATUSES,
    RANKS,
    TABLE,
    ActionRequired,
    Approved,
    AttemptStatus,
    Cancelled,
    Declined,
    Moved,
    NotSent,
    Outcome,
    Pending,
    Unknown,
    Unmoved,
    Voided,
    status_of,
)
from loop.domain.declines import DeclineClass
from tests.builders import attempt

S = AttemptStatus

TO_AND_FRO = {S.REQUIRES_ACTION, S.PENDING}

MOVES: dict[AttemptStatus, set[AttemptStatus]] = {
    S.SUBMITTING: set(S) - {S.SUBMITTING},
    S.UNKNOWN: set(S) - {S.SUBMITTING, S.UNKNOWN},
    S.REQUIRES_ACTION: {S.PENDING, S.FAILED, S.CANCELLED, S.AUTHORIZED, S.CAPTURED, S.VOIDED},
    S.PENDING: {S.REQUIRES_ACTION, S.FAILED, S.CANCELLED, S.AUTHORIZED, S.CAPTURED, S.VOIDED},
    S.FAILED: {S.CANCELLED, S.AUTHORIZED, S.CAPTURED, S.VOIDED},  # the last three: late, but true
    S.CANCELLED: {S.AUTHORIZED, S.CAPTURED, S.VOIDED},
    S.AUTHORIZED: {S.CAPTURED, S.VOIDED},
    S.CAPTURED: set(),
    S.VOIDED: set(),
}

OUTCOMES: list[tuple[Outcome, AttemptStatus]] = [
    (Approved("r", is_captured=True, amount_minor=1), S.CAPTURED),
    (Approved("r", is_captured=False, amount_minor=1), S.AUTHORIZED),
    (ActionRequired("r"), S.REQUIRES_ACTION),
    (Pending("r"), S.PENDING),
    (Declined("declined", DeclineClass.CASCADE, "No."), S.FAILED),
    (NotSent("processor_unreachable", "No."), S.FAILED),
    (Cancelled("r"), S.CANCELLED),
    (Voided("r"), S.VOIDED),
    (Unknown("no answer"), S.UNKNOWN),
]


def test_every_cell_is_defined() -> None:
    assert set(TABLE) == set(product(AttemptStatus, AttemptStatus))


@pytest.mark.parametrize("current", AttemptStatus)
def test_each_status_moves_where_the_table_of_this_test_says(current: AttemptStatus) -> None:
    moves = {claimed for claimed in AttemptStatus if attempts.advance(current, claimed) == Moved(claimed)}
    assert moves == MOVES[current]


def test_a_move_never_lowers_the_rank() -> None:
    for (current, claimed), cell in TABLE.items():
        if isinstance(cell, Moved):
            assert cell.status is claimed
            is_same = {current, claimed} == TO_AND_FRO
            assert RANKS[claimed] == RANKS[current] if is_same else RANKS[claimed] > RANKS[current]
        else:
            assert isinstance(cell, Unmoved)
            assert cell.reason


def test_what_outranks_a_fact_is_named() -> None:
    assert attempts.advance(S.CAPTURED, S.FAILED) == Unmoved("captured outranks failed")


@pytest.mark.parametrize(("outcome", "status"), OUTCOMES)
@pytest.mark.parametrize("current", AttemptStatus)
def test_an_answer_may_be_overtaken_where_no_rank_says_which_is_newer(
    outcome: Outcome, status: AttemptStatus, current: AttemptStatus
) -> None:
    asked = attempt(status=S.SUBMITTING)
    now = attempt(status=current)
    assert attempts.is_overtaken(outcome, asked=asked, current=now) is ({status, current} == TO_AND_FRO)
    assert not attempts.is_overtaken(outcome, asked=now, current=now)


def test_live_is_what_may_still_take_money() -> None:
    assert {S.SUBMITTING, S.UNKNOWN, S.REQUIRES_ACTION, S.PENDING} == LIVE_STATUSES


@pytest.mark.parametrize(("outcome", "status"), OUTCOMES)
def test_each_outcome_claims_one_status(outcome: Outcome, status: AttemptStatus) -> None:
    assert status_of(outcome) is status


def test_no_outcome_is_left_out() -> None:
    assert {type(outcome) for outcome, _ in OUTCOMES} == set(get_args(Outcome))


def test_what_customers_must_not_leak_is_not_shown() -> None:
    shown = repr(ActionRequired("r", client_secret="pi_secret_canary", processor_data={"k": "canary"}))
    assert "canary" not in shown
