"""The house's tidy rules as plain functions over source text: each returns the lines that break it, or nothing."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

MODULE_LINES = 500
TEST_MODULE_LINES = 800
FUNCTION_LINES = 70
ARGUMENTS = 6
POSITIONAL_ARGUMENTS = 2
CARRIERS = frozenset({"self", "cls", "context", "session", "reader"})
BANNED_WORDS = frozenset({"utils", "helpers", "common", "misc", "manager", "service", "data", "info"})

_SKIPPED_FOLDERS = frozenset({"build", "dist", "node_modules", "__pycache__", "screenshots"})
_KEPT_DOT_NAMES = frozenset({".ci", ".gitignore", ".pre-commit-config.yaml", ".dockerignore", ".github"})
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BLANKET_SILENCER = re.compile(
    r"#\s*type:\s*ignore(?!\[)|#\s*noqa(?!:\s*[A-Z]+\d)|#\s*(?:ruff|flake8):\s*noqa|#\s*mypy:"
)
_UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
_OUTSIDE_FOLDER = re.compile(r"\bshared[/]")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file: its path below the root of the tree and its text."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed module."""
        return ast.parse(self.text, filename=str(self.path))

    @property
    def module(self) -> str:
        """The dotted name under which Python imports this file."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def is_in(self, *rooms: str) -> bool:
        """Say whether the file lies in one of these top folders."""
        return self.path.parts[0] in rooms

    def at(self, line: int, finding: str) -> str:
        """Return one finding with its place, as editors read it."""
        return f"{self.path}:{line}: {finding}"


def _functions(source: Source) -> Iterator[Function]:
    return (node for node in ast.walk(source.tree) if isinstance(node, Function))


def long_modules(source: Source) -> Iterator[str]:
    """Find a module above its cap of lines."""
    cap = TEST_MODULE_LINES if source.is_in("tests") else MODULE_LINES
    lines = len(source.text.splitlines())
    if lines > cap:
        yield source.at(cap + 1, f"module of {lines} lines, the cap is {cap}")


def long_functions(source: Source) -> Iterator[str]:
    """Find functions above the cap; decorators, docstring and inner functions count."""
    for node in _functions(source):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        lines = (node.end_lineno or node.lineno) - first + 1
        if lines > FUNCTION_LINES:
            yield source.at(node.lineno, f"{node.name} has {lines} lines, the cap is {FUNCTION_LINES}")


def wide_functions(source: Source) -> Iterator[str]:
    """Find functions of the product with too many arguments, or public ones that take too many by place.

    What a function works through (`CARRIERS`) is not counted, like `self`. A private function stands beside its
    callers, who see its order of arguments; a public one is read far from it. An `@override` is left alone: its
    signature is its base class's. So are tests: pytest passes fixtures by name.
    """
    if source.is_in("tests"):
        return
    for node in _functions(source):
        if "override" in _decorators(node):
            continue
        by_place = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        while by_place[:1] and by_place[0] in CARRIERS:
            by_place.pop(0)
        total = len(by_place) + len(node.args.kwonlyargs)
        if total > ARGUMENTS:
            yield source.at(node.lineno, f"{node.name} takes {total} arguments, the cap is {ARGUMENTS}")
        if len(by_place) > POSITIONAL_ARGUMENTS and not node.name.startswith("_"):
            yield source.at(node.lineno, f"{node.name}: arguments after the second must be keyword-only")


def banned_names(source: Source) -> Iterator[str]:
    """Find folders, modules, classes and functions whose name is, or ends with, a word that says nothing.

    A method is left alone: its class names it, as `log.info` shows.

    A test's name is no name but a sentence: `test_a_data_directory_is_made`.
    """
    names = [(1, part) for part in source.path.with_suffix("").parts]
    methods = {id(m) for c in ast.walk(source.tree) if isinstance(c, ast.ClassDef) for m in c.body}
    definitions = (
        node
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) or (isinstance(node, Function) and id(node) not in methods)
    )
    names += [(node.lineno, node.name) for node in definitions if not node.name.startswith("test_")]
    for line, name in names:
        words = [word.lower() for word in _WORDS.findall(name)]
        if words and words[-1] in BANNED_WORDS:
            yield source.at(line, f"the name {name} ends with {words[-1]!r}, which says nothing")


def undocumented_modules(source: Source) -> Iterator[str]:
    """Find modules whose docstring is missing or is no sentence."""
    paragraph = (ast.get_docstring(source.tree) or "").split("\n\n")[0]
    if not paragraph.endswith((".", "!", "?", ":")):
        yield source.at(1, "the module needs a docstring of one sentence: what lives here")


def undocumented_names(source: Source) -> Iterator[str]:
    """Find public classes, functions and methods of the product without a docstring."""
    if source.is_in("loop"):
        yield from _undocumented_in(source, source.tree)


def _undocumented_in(source: Source, parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    for node in parent.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None and not _is_redefinition(node):
            yield source.at(node.lineno, f"{node.name} is public and has no docstring")
        if isinstance(node, ast.ClassDef):
            yield from _undocumented_in(source, node)


def _is_redefinition(node: Function | ast.ClassDef) -> bool:
    """Say whether another definition carries the docstring: an override, an overload or a property's setter."""
    return bool(_decorators(node) & {"override", "overload", "setter"})


def _decorators(node: Function | ast.ClassDef) -> set[str]:
    """Return the last names of a definition's decorators: `setter` of `@amount.setter`."""
    return {ast.unparse(decorator).rsplit(".", 1)[-1] for decorator in node.decorator_list}


def blanket_silencers(source: Source) -> Iterator[str]:
    """Find comments that silence a checker without naming one code."""
    for line, comment in _comments(source):
        if _BLANKET_SILENCER.search(comment):
            yield source.at(line, "a silenced check must name its code")


def unfinished_marks(source: Source) -> Iterator[str]:
    """Find notes about work left undone; they belong in an issue."""
    for line, comment in _comments(source):
        if _UNFINISHED.search(comment):
            yield source.at(line, "work left undone belongs in an issue, not in a comment")


def _comments(source: Source) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


PYTHON_RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    long_modules,
    long_functions,
    wide_functions,
    banned_names,
    undocumented_modules,
    undocumented_names,
    blanket_silencers,
    unfinished_marks,
)
"""Every rule that looks at one Python file."""


def outside_paths(path: PurePosixPath, text: str) -> Iterator[str]:
    """Find mentions, in a file of any kind, of a folder that is not part of the project."""
    for number, line in enumerate(text.splitlines(), start=1):
        if _OUTSIDE_FOLDER.search(line):
            yield f"{path}:{number}: names a folder outside the project"


def dead_modules(sources: Mapping[str, Source], roots: frozenset[str]) -> list[str]:
    """Return the paths of modules that no chain of imports from `roots` (dotted names) reaches."""
    alive: set[str] = set()
    waiting = [name for name in roots if name in sources]
    while waiting:  # ends: each module enters `alive` once
        name = waiting.pop()
        if name in alive:
            continue
        alive.add(name)
        waiting += [found for found in named_modules(sources[name]) if found in sources]
    return sorted(str(source.path) for name, source in sources.items() if name not in alive)


def named_modules(source: Source) -> set[str]:
    """Return the dotted names that a file imports or names in a string, each with its parent packages."""
    names: set[str] = {source.module}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names.add(node.value.split(":")[0])
    parents = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    return names | parents


def project_files(root: Path) -> Iterator[Path]:
    """Walk the project's own files: no caches, no build results, no virtual environment."""
    for path in sorted(root.iterdir()):
        if path.name.startswith(".") and path.name not in _KEPT_DOT_NAMES:
            continue
        if path.name in _SKIPPED_FOLDERS or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            yield from project_files(path)
        else:
            yield path


def read_sources(root: Path, *rooms: str) -> dict[str, Source]:
    """Read the Python files below the named top folders, by dotted name."""
    found = {}
    for room in rooms:
        for path in project_files(root / room):
            if path.suffix == ".py":
                source = Source(PurePosixPath(path.relative_to(root).as_posix()), path.read_text("utf-8"))
                found[source.module] = source
    return found
