"""Loop: a self-hostable payment routing platform in one package; `__version__` is the installed version."""


def __getattr__(name: str) -> str:
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Asked for only when somebody wants it: reading the metadata costs a quarter of the command line's start.
    from importlib.metadata import version  # noqa: PLC0415 - as above

    return version(__name__)
