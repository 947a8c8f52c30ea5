"""Dead jobs: listed with the reason, revived once and on record, and then done as if they had never failed."""

from dataclasses import replace
from datetime import timedelta

import pytest

from loop.domain.attempts import Unknown
from loop.domain.audit import Actor, ActorKind
from loop.domain.errors import LoopError
from loop.domain.orders import OrderStatus
from loop.storage import audit as rows
from loop.storage import jobs
from loop.storage.jobs import Job
from loop.workflows import dead_jobs
from loop.workflows.context import Context
from tests.builders import MIDNIGHT, Clock, Shop, job, work_off

OPERATOR = Actor(ActorKind.OPERATOR, "ada")


def dead(key: str, **changes: object) -> Job:
    return job(key, **{"is_dead": True, "failures": 20, "last_error": "it went wrong", **changes})


async def insert(context: Context, *new: Job) -> None:
    for each in new:
        await context.database.write_at_once([jobs.insertion(each)])


async def listed(context: Context, limit: int = 10) -> list[str]:
    return [each.id for each in await dead_jobs.list_dead(context, limit)]


async def test_what_died_last_is_listed_first_and_what_lives_is_not(context: Context) -> None:
    await insert(context, *(dead(f"j{n}", run_at=MIDNIGHT + timedelta(minutes=n)) for n in range(5)), job("alive"))
    assert await listed(context) == ["j4", "j3", "j2", "j1", "j0"]
    assert await listed(context, limit=2) == ["j4", "j3"]
    (first, *_) = await dead_jobs.list_dead(context, 1)
    assert (first.failures, first.last_error) == (20, "it went wrong")


async def test_a_revived_job_is_due_with_all_its_tries_and_on_record(context: Context, clock: Clock) -> None:
    await insert(context, dead("j1", run_at=MIDNIGHT + timedelta(days=1)))
    revived = await dead_jobs.revive(replace(context, actor=OPERATOR), "j1")
    assert (revived.failures, revived.is_dead) == (0, False)
    assert revived.run_at <= clock.at
    assert await listed(context) == []
    async with context.database.transaction() as session:
        (claimed,) = await jobs.claim(session, clock.now(), 10)
    assert (claimed.id, claimed.fence, claimed.failures) == ("j1", 1, 0)
    async with context.database.reading() as reader:
        (entry,) = await rows.following(reader, "operator", after=None, limit=10)
    assert (entry.action, entry.subject, entry.actor_kind, entry.actor_id) == ("job.revived", "j1", "operator", "ada")
    assert entry.after == {"kind": "test", "subject": "ord_1", "last_error": "it went wrong"}


@pytest.mark.parametrize("job_id", ["j1", "nobody's"])
async def test_what_is_not_dead_is_not_revived(context: Context, job_id: str) -> None:
    later = MIDNIGHT + timedelta(days=1)
    await insert(context, job("j1", run_at=later))
    with pytest.raises(LoopError, match="not_found"):
        await dead_jobs.revive(context, job_id)
    async with context.database.reading() as reader:
        (untouched,) = await jobs.of_subject(reader, "ord_1")
        assert untouched.run_at == later
        assert await rows.following(reader, "operator", after=None, limit=10) == []


async def test_all_of_a_kind_are_revived_up_to_a_bound(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_jobs, "REVIVED_MAX", 3)
    await insert(context, *(dead(f"j{n}") for n in range(5)), dead("other", kind="other"))
    assert [await dead_jobs.revive_kind(context, "test") for _ in range(3)] == [3, 2, 0]
    assert await listed(context) == ["other"]


async def test_a_payment_whose_job_died_is_settled_once_its_job_is_revived(shop: Shop, clock: Clock) -> None:
    shop.next_answers("authorize", Unknown("no answer"))
    order = (await shop.paid()).order
    (asking,) = await shop.jobs(order.id)
    async with shop.context.database.transaction() as session:
        (held,) = await jobs.claim(session, clock.at + timedelta(hours=1), 1)
        back = jobs.rescheduling(held, clock.at, failures=20, is_dead=True, last_error="no answer")
        jobs.require_held((await session.run_together([back]))[0])
    clock.forward(hours=2)
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.PROCESSING
    assert (await dead_jobs.revive(shop.context, asking.id)).subject == order.id
    await work_off(shop.context)
    assert (await shop.now(order.id)).order.status is OrderStatus.CAPTURED
    assert shop.moved("charge") == [1_000]
