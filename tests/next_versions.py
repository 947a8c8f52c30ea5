"""The next version of Loop: this one's code with migrations more, in a folder of its own, run as another program."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent

from alembic.script import ScriptDirectory

import loop
from loop.storage.migrate import _config

PACKAGE = Path(loop.__file__).parent
TIME_S = 60.0

EXPANDING = """
op.add_column("orders", sa.Column("shelf", sa.String(length=40), nullable=True))
op.add_column("jobs", sa.Column("weight", sa.Integer(), server_default=sa.text("1"), nullable=False))
op.create_table("shelves", sa.Column("id", sa.String(length=40), primary_key=True))
"""
"""What the code before it need not know."""

CONTRACTING = """
op.drop_column("orders", "return_url")
"""


def add_migration(versions: Path, revision: str, upgrade: str, *, after: str | None, is_expanding: bool) -> None:
    """Write a migration into a folder of them."""
    text = dedent('''
        """Made for a test."""

        import sqlalchemy as sa
        from alembic import op

        revision = {revision!r}
        down_revision = {after!r}
        branch_labels = None
        depends_on = None
        is_expanding = {is_expanding!r}


        def upgrade() -> None:
    ''').format(revision=revision, after=after, is_expanding=is_expanding)
    (versions / f"m{revision}.py").write_text(text + indent(dedent(upgrade), "    "), "utf-8")


def newest_revision() -> str | None:
    """Return the revision of the code under test."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def next_version(folder: Path, *migrations: tuple[str, bool]) -> Mapping[str, str]:
    """Copy the package, with migrations more that do something and say whether they only expand.

    Returned is what a process needs in its environment to be of that version.
    """
    shutil.copytree(PACKAGE, folder / "loop")
    after = newest_revision()
    for number, (upgrade, is_expanding) in enumerate(migrations, 1):
        revision = f"2999_01_{number:02}_next"
        versions = folder / "loop" / "storage" / "migrations" / "versions"
        add_migration(versions, revision, upgrade, after=after, is_expanding=is_expanding)
        after = revision
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


MIGRATE = """
import asyncio, sys
from loop.storage.migrate import migrate
print(asyncio.run(migrate(sys.argv[1], tries=int(sys.argv[2]))).current)
"""


async def migrate_as(version: Mapping[str, str], database_url: str, *, tries: int = 15) -> tuple[int, str]:
    """Migrate by another version; return the exit code, and what it printed or how its error ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MIGRATE, database_url, str(tries)),
        env=version,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(), TIME_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, (out if process.returncode == 0 else said).decode().strip().splitlines()[-1]
