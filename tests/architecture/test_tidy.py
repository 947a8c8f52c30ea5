"""The tidy test: the caps, names, docstrings and dead modules of the whole tree, and proof that each rule can fail."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from textwrap import dedent

import pytest

from tests.architecture import rules
from tests.architecture.rules import Source

ROOT = Path(__file__).parents[2]

Rule = Callable[[Source], Iterator[str]]


def source(text: str, path: str = "loop/domain/orders.py") -> Source:
    return Source(PurePosixPath(path), text)


def function_of(lines: int) -> str:
    """Return a function whose decorator, signature and docstring are three of its `lines`."""
    body = "    x = 1\n" * (lines - 3)
    return f'@decorated\ndef long_one():\n    """Say."""\n{body}'


@pytest.mark.parametrize("rule", rules.PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_tree_obeys(rule: Rule) -> None:
    sources = rules.read_sources(ROOT, "loop", "bench", "tests", "docs")
    assert sources
    findings = [finding for each in sources.values() for finding in rule(each)]
    assert not findings, "\n".join(findings)


def test_no_file_names_a_folder_outside_the_project() -> None:
    findings: list[str] = []
    for path in rules.project_files(ROOT):
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a font or an image
        findings += rules.outside_paths(PurePosixPath(path.relative_to(ROOT)), text)
    assert not findings, "\n".join(findings)


def test_no_module_is_dead() -> None:
    dead = rules.dead_modules(rules.read_sources(ROOT, "loop"), living_roots())
    assert not dead, "\n".join(dead)


def living_roots() -> frozenset[str]:
    """Return what is reached from outside: entry points, `python -m`, Alembic's files and the public kit in use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["scripts"], *project.get("entry-points", {}).values()]
    entries = {target.split(":")[0] for group in groups for target in group.values()}
    loop = rules.read_sources(ROOT, "loop")
    alembic = {name for name in loop if name.startswith("loop.storage.migrations.")}
    users = rules.read_sources(ROOT, "tests", "bench").values()
    kit = {name for user in users for name in rules.named_modules(user) if name.startswith("loop.testing")}
    return frozenset({"loop.__main__", *entries, *alembic, *kit})


DOCUMENTED = '"""Rules."""\n'

VIOLATIONS: list[tuple[Rule, Source, str]] = [
    (rules.long_modules, source("x = 1\n" * 501), "501 lines"),
    (rules.long_modules, source("x = 1\n" * 801, "tests/unit/test_orders.py"), "801 lines"),
    (rules.long_functions, source(function_of(71)), "long_one has 71 lines"),
    (rules.long_functions, source(function_of(71), "tests/unit/test_orders.py"), "long_one has 71 lines"),
    (rules.long_functions, source("class A:\n    async def f(self):\n" + "        f()\n" * 70), "f has 71 lines"),
    (rules.wide_functions, source("def f(*, a, b, c, d, e, f, g): ..."), "f takes 7 arguments"),
    (rules.wide_functions, source("def f(a, b, c): ..."), "keyword-only"),
    (rules.wide_functions, source("def f(a, b, /, c): ..."), "keyword-only"),
    (rules.wide_functions, source("class A:\n    def f(self, a, b, c): ..."), "keyword-only"),
    (rules.wide_functions, source("async def f(context, a, b, c): ..."), "keyword-only"),
    (rules.banned_names, source("", "loop/utils/orders.py"), "'utils'"),
    (rules.banned_names, source("", "loop/domain/order_helpers.py"), "'helpers'"),
    (rules.banned_names, source("class OrderManager: ..."), "'manager'"),
    (rules.banned_names, source("class HTTPService: ..."), "'service'"),
    (rules.banned_names, source("def f():\n    def load_data(): ..."), "'data'"),
    (rules.undocumented_modules, source("x = 1"), "docstring"),
    (rules.undocumented_modules, source('"""orders"""'), "docstring"),
    (rules.undocumented_names, source("async def pay(): ..."), "pay is public"),
    (rules.undocumented_names, source('class A:\n    """A."""\n    def b(self): ...'), "b is public"),
    (rules.undocumented_names, source("class A: ..."), "A is public"),
    (rules.blanket_silencers, source("x = 1  # type: ignore"), "name its code"),
    (rules.blanket_silencers, source("x = 1  # noqa"), "name its code"),
    (rules.blanket_silencers, source("# ruff: noqa"), "name its code"),
    (rules.blanket_silencers, source("# mypy: ignore-errors"), "name its code"),
    (rules.unfinished_marks, source("x = 1  # TODO: pay"), "undone"),
    (rules.unfinished_marks, source("# FIXME"), "undone"),
]


@pytest.mark.parametrize(("rule", "broken", "finding"), VIOLATIONS)
def test_rule_can_fail(rule: Rule, broken: Source, finding: str) -> None:
    findings = list(rule(broken))
    assert len(findings) == 1
    assert finding in findings[0]
    assert findings[0].startswith(f"{broken.path}:")


def test_every_rule_is_proven_able_to_fail() -> None:
    assert {rule for rule, _, _ in VIOLATIONS} == set(rules.PYTHON_RULES)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n" * 497 + DOCUMENTED,
        function_of(70),
        "def f(a, b, *, c, d, e, f): ...",
        "class A:\n    def f(self, a, b): ...\n    @classmethod\n    def g(cls, a, b): ...",
        "def dataclass_of(): ...\ndef information(): ...\nclass Metadata: ...",
        "class A:\n    @override\n    def f(self, a, b, c): ...",
        "def test_a_data_directory_is_made(): ...",
        "x = 1  # type: ignore[arg-type]\ny = 2  # noqa: S105 - a prefix",
        'x = "# noqa"\ny = "# TODO"',
    ],
)
def test_rules_leave_good_code_alone(text: str) -> None:
    named = [rule for rule in rules.PYTHON_RULES if not rule.__name__.startswith("undocumented")]
    assert [finding for rule in named for finding in rule(source(text))] == []


def test_documented_code_is_left_alone() -> None:
    text = dedent('''
        """Orders: what is owed."""
        @overload
        def pay(a: int) -> int: ...
        def pay(a):
            """Pay."""
            def inner(): ...
        class Order:
            """Owed."""
            def __init__(self): ...
            def _hidden(self): ...
            @paid.setter
            def paid(self, value): ...
            @override
            def told(self): ...
    ''')
    assert [*rules.undocumented_modules(source(text)), *rules.undocumented_names(source(text))] == []


def test_outside_path_is_found_in_any_file() -> None:
    text = "# Guide\nsee ../" + "shared" + "/design.md\n"
    assert list(rules.outside_paths(PurePosixPath("docs/guide.md"), text)) == [
        "docs/guide.md:2: names a folder outside the project"
    ]


def test_dead_modules_are_those_no_entry_point_reaches() -> None:
    sources = {
        each.module: each
        for each in (
            source("from loop.server import app", "loop/cli.py"),
            source("", "loop/server/__init__.py"),
            source("def run():\n    import loop.runtime", "loop/server/app.py"),
            source('TARGET = "loop.workers.execute:run"', "loop/runtime.py"),
            source("", "loop/workers/execute.py"),
            source("import loop.domain.b", "loop/domain/a.py"),
            source("import loop.domain.a", "loop/domain/b.py"),
        )
    }
    assert rules.dead_modules(sources, frozenset({"loop.cli"})) == ["loop/domain/a.py", "loop/domain/b.py"]


def test_only_project_files_are_walked(tmp_path: Path) -> None:
    for name in ("loop/a.py", ".venv/b.py", ".ci/run", "dist/c.whl", "loop/__pycache__/a.pyc", ".gitignore"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in rules.project_files(tmp_path)]
    assert found == [".ci/run", ".gitignore", "loop/a.py"]
