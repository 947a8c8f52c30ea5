"""The files that settings come from: the TOML file, and the generated secrets, made once and rotated."""

import json
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from loop.domain.errors import LoopError, configuration

SECRETS_FILE: Final = "secrets.toml"
"""Name of the file in the data directory that keeps the generated secrets."""

SECRET_NAMES: Final = ("jwt_secret", "encryption_key")
EARLIER_KEYS: Final = "encryption_keys_previous"

_HEAD: Final = "# Made by Loop. Keep a copy: without encryption_key, stored credentials cannot be read.\n"


def read_toml(path: Path, *, is_private: bool = False) -> Mapping[str, object]:
    """Return what a TOML file holds; a private one is refused when other users may open it."""
    try:
        with path.open("rb") as file:
            if is_private and os.fstat(file.fileno()).st_mode & 0o077:
                raise configuration("secrets_exposed", f"Other users may open {path}. Run: chmod 600 {path}")
            return tomllib.load(file)
    except OSError as error:
        raise configuration("unreadable_config", f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # neither TOML nor UTF-8
        raise configuration("unreadable_config", f"{path} is not a TOML file: {error}.") from None


def refuse_unknown(given: Mapping[str, object], where: str, *, known: Collection[str]) -> None:
    """Raise `unknown_setting`, with the nearest name, for the first that is not known."""
    for name in given:
        if name not in known:
            (near,) = get_close_matches(name, known, n=1, cutoff=0)
            raise configuration("unknown_setting", f"{name} ({where}) is no setting. Did you mean {near}?")


def unwritable(path: Path, error: OSError) -> LoopError:
    """Return the error for a data directory, or a file in it, that cannot be made or written."""
    return configuration(
        "unwritable_data_dir",
        f"{path} cannot be written: {error.strerror}. Set data_dir to a directory you may write. If Loop runs as "
        "another user, run this as that one.",
    )


@contextmanager
def looking_around() -> Iterator[None]:
    """Say of a place that cannot be looked at what to do: who may not enter it does not see whether a file is there."""
    try:
        yield
    except OSError as error:
        raise configuration(
            "unreadable_config",
            f"{error.filename} cannot be looked at: {error.strerror}. Run this as the user that Loop runs as, or set "
            "data_dir to a directory that this one may enter.",
        ) from error


def sqlite_path_of(database_url: object) -> Path | None:
    """Return the file that an address names; None for PostgreSQL's."""
    url = str(database_url)
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:") else None


def require_room(data_dir: Path, database: Path, *, makes: bool) -> None:
    """Make the data directory, unless nothing is to be made; raise an error where the database's is not there."""
    try:
        if makes:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(data_dir, error) from error
    if not database.parent.is_dir() and (data_dir.exists() or database.parent != data_dir):
        raise configuration(
            "invalid_setting", f"database_url names {database}, whose directory is not there. Make it first."
        )


def generated_secrets(path: Path, database: Path, *, makes: bool) -> tuple[Mapping[str, object], str]:
    """Return the secrets in the file `path`, which is made (mode 0600) with new ones where there is none, and its name.

    Processes that start together agree on one file. A database without its file is refused, because a new key
    could not read what is stored in it. Where nothing is to be made, new ones are returned and kept nowhere.
    """
    # Looked at before the file: whichever process makes both makes the file first.
    has_database = database.is_file() and database.stat().st_size > 0
    if not path.exists():
        if has_database:
            raise configuration(
                "missing_secret",
                f"The database {database} is there but its secrets are not. Bring back {path}, "
                "or set jwt_secret and encryption_key as they were.",
            )
        if not makes:
            return {name: _new_secret() for name in SECRET_NAMES}, f"{path}, not made yet"
        try:
            _write_once(path, {name: _new_secret() for name in SECRET_NAMES})
        except OSError as error:
            raise unwritable(path, error) from error
    return _kept_secrets(path), str(path)


def _new_secret() -> str:
    return os.urandom(32).hex()


def rotate_generated_key(path: Path) -> str:
    """Put a new encryption key in the place of the one in a secrets file, which stays beside it; return the new one.

    A kill leaves the file as it was or as it shall be. Only for whoever has the keys to itself.
    """
    kept = _kept_secrets(path)
    earlier = kept.get(EARLIER_KEYS, [])
    keys = [kept["encryption_key"], *(earlier if isinstance(earlier, list) else [earlier])]
    new = _new_secret()
    _replace(path, {**kept, "encryption_key": new, EARLIER_KEYS: keys})
    return new


def drop_earlier_keys(path: Path) -> None:
    """Take the earlier encryption keys out of a secrets file. Only for whoever has the keys to itself."""
    kept = _kept_secrets(path)
    _replace(path, {name: value for name, value in kept.items() if name != EARLIER_KEYS})


def _kept_secrets(path: Path) -> Mapping[str, object]:
    kept = read_toml(path, is_private=True)
    refuse_unknown(kept, str(path), known=(*SECRET_NAMES, EARLIER_KEYS))
    for name in SECRET_NAMES:
        if not kept.get(name):
            raise configuration("missing_secret", f"{path} has no {name}. Bring the file back as it was.")
    return kept


def _draft(path: Path, content: Mapping[str, object]) -> Path:
    draft = path.with_name(f"{path.name}.{os.urandom(8).hex()}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(_HEAD)
        file.writelines(f"{name} = {json.dumps(value)}\n" for name, value in content.items())
        file.flush()
        os.fsync(file.fileno())
    return draft


def _write_once(path: Path, content: Mapping[str, object]) -> None:
    draft = _draft(path, content)
    try:
        path.hardlink_to(draft)  # exclusive like O_EXCL, and the file is whole from its first moment
    except FileExistsError:
        pass  # another process was first, and its secrets count
    finally:
        draft.unlink()


def _replace(path: Path, content: Mapping[str, object]) -> None:
    try:
        draft = _draft(path, content)
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # or the new name could be lost after rows were written under its keys
        finally:
            os.close(folder)
    except OSError as error:
        raise unwritable(path, error) from error
