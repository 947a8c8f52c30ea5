"""The commands about jobs: what Loop has yet to do, what it gave up on, and having that tried again."""

from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli_console import AsJson, Limit, print_done, print_record, print_rows, run_work
from loop.domain.errors import invalid, not_found

if TYPE_CHECKING:
    from loop.storage.job_lists import JobState
    from loop.storage.jobs import Job
    from loop.workflows.context import Context

jobs_app = typer.Typer(help="What Loop has yet to do, and what it gave up on.", no_args_is_help=True)


STATES = ("waiting", "due", "running", "dead")


@jobs_app.command("list")
def list_jobs(
    *,
    state: Annotated[str | None, typer.Option(help=f"Only those that are {', '.join(STATES[:-1])} or dead.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of one kind.")] = None,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs: the dead ones first, then by when they run.

    The next page begins after the last id: give it as --after. That job must be there still.

    Example: loop jobs list --state dead
    """
    from loop.storage import job_lists
    from loop.workflows.jobs import JOBS

    if state is not None and state not in STATES:
        raise invalid("validation_failed", f"--state must be one of {', '.join(STATES)}.")

    async def work(context: "Context") -> "list[tuple[Job, JobState]]":
        wanted, now = None if state is None else job_lists.JobState(state), context.now()
        async with context.database.reading() as reader:
            last = None if after is None else await job_lists.get(reader, after)
            if after is not None and last is None:
                raise not_found("job to begin after")
            which = job_lists.JobFilter(wanted, kind, last)
            found = await job_lists.list_jobs(reader, which, now=now, limit=limit)
        if not found and kind is not None and kind not in JOBS:
            raise invalid("validation_failed", f"There is no kind {kind}; there are {', '.join(JOBS)}.")
        return [(job, job_lists.state_of(job, now)) for job in found]

    rows = [
        (job.id, job.kind, job.subject, str(stands), job.run_at, job.failures, job.last_error)
        for job, stands in run_work(work)
    ]
    print_rows(("id", "kind", "subject", "state", "runAt", "failures", "lastError"), rows, as_json=as_json)


@jobs_app.command("show")
def show_job(
    job_id: Annotated[str, typer.Argument(help="The job's id, from the list.", metavar="JOB")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a job.

    Example: loop jobs show job_01hx…
    """
    from loop.storage import job_lists

    async def work(context: "Context") -> "tuple[Job, JobState]":
        async with context.database.reading() as reader:
            job = await job_lists.get(reader, job_id)
        if job is None:
            raise not_found("job")
        return job, job_lists.state_of(job, context.now())

    job, stands = run_work(work)
    shown = {
        "id": job.id,
        "kind": job.kind,
        "subject": job.subject,
        "state": str(stands),
        "runAt": job.run_at,
        "failures": job.failures,
        "lastError": job.last_error,
        "arguments": dict(job.arguments),
        "correlationId": job.correlation_id,
        "createdAt": job.created_at,
    }
    print_record(shown, as_json=as_json)


@jobs_app.command("revive")
def revive_jobs(
    job_id: Annotated[str | None, typer.Argument(help="The dead job's id, from the list.", metavar="JOB")] = None,
    *,
    kind: Annotated[str | None, typer.Option(help="Every dead job of one kind instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have the running Loop try a dead job again, once what it failed by is mended.

    Example: loop jobs revive job_01hx…
    """
    from loop.workflows import dead_jobs

    if (job_id is None) is (kind is None):
        raise invalid("validation_failed", "Give either a job's id or --kind.")

    async def work(context: "Context") -> int:
        if kind is not None:
            return await dead_jobs.revive_kind(context, kind)
        await dead_jobs.revive(context, str(job_id))
        return 1

    count = run_work(work)
    print_done({"revived": count}, f"{count} jobs are due again.", as_json=as_json)
