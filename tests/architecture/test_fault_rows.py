"""The faults that Loop survives, by their number, each with the tests that show it: a test that goes is missed."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

ROWS: Mapping[int, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    20: (
        "webhooks that are forged, signed with a wrong or old secret, stale, from the future, not ASCII, replayed",
        {
            "api/test_inbound_webhooks.py": (
                "test_wrong_old_and_no_secret",
                "test_an_event_of_three_days_ago_is_taken_when_it_is_signed_now_and_refused_when_it_was_then",
                "test_a_body_that_was_listened_to_is_not_another_event_under_another_id",
                "test_nothing_that_one_account_signs_touches_an_order_of_another_s",
            ),
            "api/test_processor_webhooks.py": ("test_unsigned_and_wrongly_signed_webhooks_are_refused",),
            "unit/test_stripe_webhooks.py": (
                "test_malformed_header_is_refused",
                "test_signed_time_may_be_a_little_off",
            ),
            "unit/test_razorpay_webhooks.py": ("test_malformed_signature_is_refused",),
        },
    ),
    21: (
        "captures, cancellations and refunds at once; a hundred refunds of everything",
        {
            "workflow/test_concurrency.py": (
                "test_of_a_hundred_refunds_of_everything_one_succeeds",
                "test_captures_cancellations_and_refunds_at_once_end_in_a_legal_state_with_equal_books",
            ),
        },
    ),
    22: (
        "a refund that is not answered and is tried again",
        {
            "workflow/test_refunds.py": (
                "test_a_refund_that_is_not_answered_is_repeated_under_its_key",
                "test_a_process_that_dies_before_the_refund_is_succeeded",
            ),
            "api/test_idempotency.py": ("test_after_a_crash_a_refund_is_not_made_again",),
        },
    ),
    23: (
        "clocks ten minutes apart, or turned back",
        {
            "workflow/test_clocks.py": (
                "test_a_node_whose_clock_is_ahead_takes_a_lease_over_and_its_holder_changes_nothing_any_more",
                "test_a_node_whose_clock_is_behind_takes_no_lease_over",
                "test_a_clock_that_is_turned_back_loses_no_job",
                "test_a_token_lasts_its_time_and_no_longer_and_may_be_a_moment_ahead",
            ),
            "unit/test_breakers.py": ("test_a_clock_that_is_turned_back_holds_nobody_off",),
        },
    ),
    24: ("a full disk", {"workflow/test_sqlite.py": ("test_a_full_disk_is_unavailable_and_passes",)}),
    25: (
        "a SQLite file that somebody else writes to for ten seconds",
        {
            "workflow/test_sqlite.py": (
                "test_an_outside_writer_delays_but_loses_nothing",
                "test_an_outside_writer_that_stays_makes_everybody_give_up_together",
            ),
            "api/test_locked_database.py": ("test_ten_seconds_of_somebody_else_s_writing_lose_nothing",),
        },
    ),
    26: (
        "merchants' servers that hang, drip, flood, break off, or have no certificate",
        {
            "unit/test_hostile_endpoints.py": (
                "test_who_takes_for_ever_is_left_at_the_deadline",
                "test_what_is_no_answer_is_an_error_at_once",
                "test_a_reset_is_an_error",
                "test_ten_megabytes_of_headers_are_not_read",
                "test_a_body_without_end_is_left_after_its_beginning",
                "test_a_certificate_that_nobody_vouches_for_gets_no_event",
            ),
        },
    ),
    27: (
        "endpoints that lead inwards: redirects, names that move, numbers written oddly",
        {
            "unit/test_hostile_endpoints.py": (
                "test_a_redirect_to_the_cloud_s_own_address_is_an_answer_and_not_followed",
                "test_a_name_that_moves_inwards_later_is_not_followed_there",
                "test_a_name_may_not_lead_inwards",
                "test_an_address_of_one_interface_is_refused",
            ),
            "unit/test_endpoint_urls.py": ("test_other_addresses_are_refused_with_the_field_named",),
        },
    ),
    28: (
        "a dead endpoint with ten thousand events beside a healthy one",
        {
            "workflow/test_delivery_lanes.py": (
                "test_a_dead_endpoint_with_ten_thousand_events_waiting_holds_up_nobody",
            ),
        },
    ),
    29: (
        "bodies that are no JSON, too large, too deep, without end, or hold what no field may",
        {
            "api/test_bad_input.py": (
                "test_what_is_no_sound_json_is_refused",
                "test_what_no_order_may_be_is_refused",
                "test_a_large_body_is_refused",
                "test_a_body_without_end_is_refused",
                "test_a_request_whose_end_two_readers_could_see_differently_is_refused",
            ),
            "api/test_injection.py": ("test_text_comes_back_exactly_and_finds_only_itself",),
            "unit/test_connections.py": ("test_a_head_without_end_is_refused",),
        },
    ),
    30: (
        "SQL, line ends and markup in whatever a caller may send",
        {
            "api/test_injection.py": (),
            "api/test_checkout.py": ("test_pages_hold_to_a_strict_policy_and_escape_what_merchants_write",),
            "api/test_dashboard_orders.py": ("test_export_holds_what_the_filter_finds",),
        },
    ),
    31: (
        "another merchant's ids, fields that are not the caller's to set, a test key on a live order",
        {
            "api/test_tenancy.py": (
                "test_every_address_has_a_case",
                "test_to_another_merchant_an_id_of_the_api_does_not_exist",
                "test_to_another_merchant_an_id_of_the_dashboard_does_not_exist",
                "test_what_is_not_a_caller_s_to_set_is_refused",
            ),
            "api/test_modes.py": (),
            "architecture/test_scoped_queries.py": ("test_what_reads_a_merchant_s_rows_says_whose",),
        },
    ),
    32: (
        "tokens that are unsigned, confused, expired or used twice",
        {
            "api/test_auth.py": ("test_a_token_must_be_ours_whole_and_fresh",),
            "workflow/test_sessions.py": (
                "test_a_used_token_shown_later_ends_its_session_and_no_other",
                "test_many_that_refresh_at_once_all_get_the_one_successor",
            ),
        },
    ),
    33: (
        "guessing passwords and keys, and telling from the time which exist",
        {
            "workflow/test_merchants.py": (
                "test_an_unknown_user_costs_as_much_time_as_a_wrong_password",
                "test_guesses_at_one_account_wait_and_its_owner_gets_in_when_the_wait_is_over",
                "test_guesses_at_many_accounts_from_one_address_wait",
            ),
            "api/test_auth.py": ("test_a_key_that_was_revoked_takes_as_long_to_refuse_as_one_that_never_was",),
        },
    ),
    34: (
        "card numbers and secrets where they do not belong",
        {
            "api/test_bad_input.py": ("test_a_card_number_anywhere_is_refused",),
            "api/test_card_numbers.py": ("test_a_card_number_is_kept_and_answered_nowhere",),
            "unit/test_canaries.py": (
                "test_what_leaks_into_an_answer_is_found",
                "test_what_leaks_into_a_table_is_found_before_and_after_it_is_in_the_file",
                "test_the_log_is_heard_as_it_is_written",
            ),
            "unit/test_telemetry.py": ("test_no_secret_reaches_the_log",),
        },
    ),
    35: (
        "ciphertexts that were moved, keys that are old or gone, a rotation that stopped half-way",
        {
            "unit/test_keyring.py": (
                "test_a_ciphertext_moved_to_another_row_or_tenant_is_refused",
                "test_a_key_that_is_missing_is_named_and_nothing_is_read",
                "test_the_first_key_encrypts_and_an_old_one_still_reads",
            ),
            "workflow/test_encryption_keys.py": (
                "test_a_half_finished_rotation_reads_everywhere_and_goes_on_where_it_was",
                "test_a_ciphertext_moved_to_another_merchant_s_row_is_refused_and_stops_no_rotation",
            ),
        },
    ),
    36: (
        "idempotency keys: fifty at once, another body, another merchant, too long, after a crash",
        {
            "api/test_idempotency.py": (
                "test_the_same_request_is_answered_the_same",
                "test_another_request_under_the_key_is_refused",
                "test_fifty_at_once_make_one_order",
                "test_fifty_at_once_make_one_payment",
                "test_a_bad_key_is_refused",
                "test_after_a_crash_a_payment_is_answered_as_it_stands",
            ),
        },
    ),
}
"""What may go wrong from outside, and which tests show that it does no harm; a file without names is meant whole."""


def test_every_row_is_here() -> None:
    assert list(ROWS) == list(range(20, 37))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_s_tests_are_there(row: int) -> None:
    _, files = ROWS[row]
    assert files
    for path, names in files.items():
        there = set(re.findall(r"^(?:async )?def (test_\w+)\(", (TESTS / path).read_text(), re.MULTILINE))
        assert there, path
        assert set(names) <= there, f"row {row}: what showed it is gone from {path}, or has another name"
