"""The reference of the commands, made from the command line itself."""

import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from loop.cli import EXIT_CODES, app
from loop.cli_console import PANELS

_HEAD = """# Commands

`loop --help` and `loop COMMAND --help` say the same. Before any command stand `--config FILE` (the TOML file with the
settings) and `--data-dir DIR` (where the SQLite file and the secrets are); every [setting](configuration.md) may come
from the environment instead. `--json` prints JSON for programs, on standard output alone: times as the API has them,
amounts in minor units beside their currency. `loop --install-completion` has the shell complete commands and options,
`loop --version` is `loop version`.

## Exit codes

| Code | Means |
|---|---|
| 0 | done |
| 1 | a comparison or a check found something, or Loop made a mistake (then with a traceback) |
| 2 | the command was mistyped |
{codes}| 10 | a payment failed, or its processor refused a refund (`order pay`, `order refund`) |
| 130 | Ctrl-C |

Standard error then has one line, `code: message`, with a [stable code](errors.md).
"""


def markdown() -> str:
    """Return docs/reference/cli.md: every command with what it takes, by the parts of `loop --help`."""
    root: Any = get_command(app)
    by_code: dict[int, list[str]] = {}
    for kind, code in EXIT_CODES.items():
        by_code.setdefault(code, []).append(kind.replace("_", " "))
    codes = "".join(f"| {code} | {', '.join(kinds)} |\n" for code, kinds in by_code.items())
    parts = [_HEAD.format(codes=codes)]
    for panel in PANELS:
        parts.append(f"\n## {panel}\n")
        for command in root.commands.values():
            if command.rich_help_panel == panel:
                parts += _described(command, f"loop {command.name}")
    return "".join(parts)


def _described(command: Any, path: str, marks: str = "###") -> Iterator[str]:  # noqa: ANN401 - private to Typer
    """Yield the command's own text, or that of each command in it."""
    inside = getattr(command, "commands", {})
    if inside:
        yield f"\n### {path}\n\n{_prose(command.help)}\n"
        for each in inside.values():
            yield from _described(each, f"{path} {each.name}", "####")
        return
    context = command.context_class(command, info_name=path)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([path, *map(_metavar, arguments)])
    yield f"\n{marks} `{usage}`\n\n{_prose(command.help)}\n"
    options = [each.get_help_record(context) for each in command.params if each.param_type_name == "option"]
    rows = [(_metavar(each), each.help) for each in arguments if each.help] + [each for each in options if each]
    if rows:
        yield "\n| | |\n|---|---|\n"
        yield from (f"| `{names.replace('|', ', ')}` | {about} |\n" for names, about in rows)


def _metavar(argument: Any) -> str:  # noqa: ANN401 - private to Typer
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _prose(text: str | None) -> str:
    """Return a command's help as Markdown."""
    paragraphs = [" ".join(each.split()) for each in (text or "").split("\n\n")]
    return "\n\n".join(re.sub(r"^Example: (.*)$", r"Example: `\1`", each) for each in paragraphs)
