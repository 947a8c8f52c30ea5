"""The faults that Loop survives, by their number, each with the tests that show it: a test that goes is missed."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.faults import injections, sales

TESTS = Path(__file__).parents[1]
TOWN = "faults/test_fault_town.py"

ROWS: Mapping[int, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    1: (
        "a worker that is killed, at each point of its work",
        {
            "e2e/test_crash.py": (
                "test_killed_at",
                "test_killed_in_a_failover_at",
            ),
            "e2e/test_roles.py": ("test_what_a_killed_worker_held_is_another_s_when_its_lease_ends",),
            "workflow/test_runner.py": ("test_what_a_crashed_process_held_is_done_by_another_when_the_lease_ends",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    2: (
        "an API that is killed between the commit and the answer",
        {
            "api/test_idempotency.py": (
                "test_after_a_crash_a_payment_is_answered_as_it_stands",
                "test_after_a_crash_a_refund_is_not_made_again",
                "test_after_a_crash_capture_and_cancel_are_answered_as_they_stand",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    3: (
        "Loop on SQLite, killed again and again",
        {
            "e2e/test_random_kills.py": ("test_killed_at_random",),
            "e2e/test_fault_states.py": ("test_every_job_is_killed_in_every_state",),
        },
    ),
    4: (
        "a worker that is frozen past its lease, and thaws",
        {
            "workflow/test_runner.py": ("test_what_a_frozen_process_held_is_another_s_and_stays_so_when_it_thaws",),
            "workflow/test_jobs.py": (
                "test_a_holder_that_froze_and_thawed_finds_its_lease_lost",
                "test_a_stale_holder_s_write_is_rolled_back_with_all_that_came_with_it",
            ),
            "workflow/test_deliveries.py": (
                "test_a_holder_that_froze_stores_nothing_though_the_job_has_ended_and_begun_anew_since",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    5: (
        "two workers at one job, two processes at one SQLite file",
        {
            "workflow/test_jobs.py": ("test_claimers_never_get_the_same_job",),
            "workflow/test_payments.py": ("test_two_that_run_one_payment_charge_once_and_tell_once",),
            "workflow/test_sqlite.py": ("test_two_processes_take_turns",),
            "e2e/test_cli.py": ("test_a_second_serve_on_the_same_file_is_refused",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    6: (
        "processes that are told to stop in the middle of a call, and replaced one by one",
        {
            "workflow/test_runner.py": (
                "test_a_stop_lets_what_runs_end",
                "test_what_a_stop_cut_short_is_handed_back_where_that_is_safe",
                "test_what_is_of_a_later_version_is_left_to_it",
            ),
            "e2e/test_roles.py": ("test_a_worker_that_stops_hands_on_at_once_what_it_was_in_the_middle_of",),
            "e2e/test_rolling_upgrade.py": (
                "test_two_versions_side_by_side_lose_nothing_while_one_takes_over_from_the_other",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    7: (
        "PostgreSQL that crashes in the middle of a commit",
        {
            "workflow/test_postgres.py": ("test_a_connection_that_is_cut_in_a_transaction_leaves_nothing",),
            "api/test_postgres_away.py": (
                "test_a_database_that_is_cut_off_is_told_at_once_and_what_was_asked_for_is_done_once",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    8: (
        "PostgreSQL that crashes while leases are taken over",
        {
            "workflow/test_runner.py": ("test_a_database_that_is_away_for_a_while_does_not_end_the_runner",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    9: (
        "connections to the database that are dropped, used up, in each other's way",
        {
            "workflow/test_postgres.py": (
                "test_connections_that_were_cut_are_replaced",
                "test_waiting_for_a_connection_is_bounded",
                "test_of_two_that_wait_for_each_other_one_is_told_to_come_again",
            ),
            "api/test_postgres_away.py": (
                "test_a_database_that_says_nothing_holds_up_nobody_for_long",
                "test_while_every_connection_is_taken_requests_wait_for_a_bounded_time",
                "test_a_deadlock_is_a_503_that_changed_nothing_and_the_same_request_again_has_one_effect",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    10: (
        "a Redis that has forgotten everything, or is down",
        {
            "workflow/test_arq_runner.py": (
                "test_orders_in_flight_go_through_whatever_redis_does",
                "test_a_redis_that_takes_no_writes_is_away_until_one_goes_through",
            ),
            "unit/test_redis_limits.py": (
                "test_redis_comes_and_goes",
                "test_a_redis_that_was_never_there_stops_nothing",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    11: (
        "a Redis that is slow or full; wake-ups that come twice, in any order, of nothing",
        {
            "unit/test_redis_limits.py": ("test_a_redis_that_does_not_answer_holds_up_one_request_only",),
            "workflow/test_runner.py": ("test_wake_ups_without_number_run_a_job_once",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    12: (
        "a processor that charges and does not answer, or half",
        {
            "unit/test_stripe_calls.py": (
                "test_unclear_answer_is_unknown_until_repeated",
                "test_lost_answer_to_a_change_is_unknown_until_repeated",
            ),
            "unit/test_razorpay_calls.py": (
                "test_unclear_answer_is_unknown_until_repeated",
                "test_lost_order_is_found_by_its_receipt",
            ),
            "e2e/test_fault_states.py": ("test_every_fault_hits_in_every_state",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    13: (
        "a processor that never got the request",
        {
            "workflow/test_payments.py": ("test_silence_is_unclear_until_the_same_request_is_answered",),
            "e2e/test_fault_states.py": ("test_every_fault_hits_in_every_state",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    14: (
        "a processor that keeps an error for the key",
        {
            "unit/test_stripe_calls.py": (
                "test_stored_error_after_a_charge_is_seen_through",
                "test_stored_error_without_a_charge_stays_unknown",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    15: (
        "a processor that refuses everything for a while",
        {
            "workflow/test_routing.py": (
                "test_too_many_calls_without_an_answer_open_the_circuit_until_a_probe_succeeds",
                "test_while_a_probe_is_on_its_way_the_others_go_elsewhere",
            ),
            "unit/test_stripe_calls.py": ("test_rate_limit_is_not_sent",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    16: (
        "a payment that is tried elsewhere before the first try is clear",
        {
            "workflow/test_failovers.py": (
                "test_what_may_still_be_paid_stays_where_it_is",
                "test_a_payment_that_nothing_rules_out_is_not_followed",
                "test_a_fence_without_an_answer_is_asked_for_again_and_then_given_up",
            ),
            "workflow/test_database.py": ("test_an_order_has_one_live_attempt_at_most",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    17: (
        "money of an earlier attempt that comes late",
        {
            "workflow/test_late_successes.py": (
                "test_a_second_payment_goes_back_and_leaves_the_order_as_it_is",
                "test_a_second_payment_that_cannot_go_back_needs_a_person",
                "test_it_pays_the_order_unless_its_merchant_wants_otherwise",
            ),
            "unit/test_razorpay_calls.py": ("test_late_authorization_is_heard_of",),
        },
    ),
    18: (
        "webhooks before the answer, without one, instead of one",
        {
            "api/test_inbound_webhooks.py": (
                "test_webhooks_that_come_before_the_answer_of_the_charge_end_the_same",
                "test_webhooks_that_come_before_the_answer_of_the_refund_end_the_same",
            ),
            "workflow/test_processor_events.py": ("test_webhooks_before_between_and_after_the_answer_end_the_same",),
            "workflow/test_pending_payments.py": ("test_of_two_answers_at_once_neither_is_taken_for_the_newer_one",),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    19: (
        "webhooks fifty times each, shuffled, days late, failed after succeeded",
        {
            "api/test_inbound_webhooks.py": (
                "test_each_fifty_times_at_once_is_one_change_and_one_event",
                "test_shuffled_and_three_days_late_they_end_the_same",
                "test_failed_after_succeeded_stays_succeeded",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
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
                "test_of_two_processes_whose_clocks_are_apart_neither_takes_the_other_s_lease",
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
    37: (
        "a migration that is killed half-way; a schema of a newer version",
        {
            "migrations/test_migrations.py": (
                "test_a_migration_that_is_killed_half_way_leaves_nothing_and_can_be_run_again",
                "test_a_schema_of_a_newer_loop_is_left_alone",
                "test_an_old_schema_on_postgres_is_refused_with_the_command_that_helps",
            ),
            "migrations/test_versions.py": (
                "test_an_older_version_runs_on_a_schema_that_was_only_expanded_since",
                "test_the_next_version_s_migration_that_is_killed_half_way_leaves_the_schema_as_it_was",
            ),
            "e2e/test_rolling_upgrade.py": (
                "test_the_version_before_does_not_start_on_a_schema_that_it_may_not_run_on_and_changes_nothing",
            ),
        },
    ),
    38: (
        "a process that does nothing for so long that its leases end",
        {
            "workflow/test_jobs.py": (
                "test_a_holder_that_froze_and_thawed_finds_its_lease_lost",
                "test_a_stale_holder_can_neither_renew_nor_give_back",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
    39: (
        "limits and circuits that were lost with Redis",
        {
            "unit/test_redis_limits.py": (
                "test_redis_comes_and_goes",
                "test_a_redis_that_does_not_answer_holds_up_one_request_only",
            ),
            "unit/test_rate_limits.py": ("test_no_more_than_a_burst_and_the_rate_ever_goes_through",),
            "unit/test_redis_breakers.py": (
                "test_a_redis_that_was_emptied_is_told_again",
                "test_calls_are_counted_by_each_for_itself_and_go_on_counting",
            ),
            TOWN: ("test_everything_around_it_fails",),
        },
    ),
}
"""What may go wrong, and which tests show that it does no harm; a file without names is meant whole."""


def test_every_row_is_here() -> None:
    assert list(ROWS) == list(range(1, 40))


def test_the_rows_of_the_town_are_those_that_it_is_put_through() -> None:
    assert {row for row, (_, files) in ROWS.items() if TOWN in files} == injections.ROWS | {sales.ROW}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_s_tests_are_there(row: int) -> None:
    _, files = ROWS[row]
    assert files
    for path, names in files.items():
        there = set(re.findall(r"^(?:async )?def (test_\w+)\(", (TESTS / path).read_text(), re.MULTILINE))
        assert there, path
        assert set(names) <= there, f"row {row}: what showed it is gone from {path}, or has another name"
