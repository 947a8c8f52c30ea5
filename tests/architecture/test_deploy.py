"""The files that deploy Loop name settings, commands, addresses and packages that there are."""

import re
import shutil
import subprocess
import tomllib
from base64 import b64decode
from pathlib import Path

import pytest
from typer.main import get_command

from loop.cli import app
from loop.config import SETTINGS, load
from tests.architecture.rules import project_files

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FILES = [
    ROOT / "Dockerfile",
    ROOT / "docs" / "guides" / "deploy.md",
    *WORKFLOWS,
    *project_files(ROOT / "deploy"),
]

OF_COMPOSE = {"LOOP_IMAGE", "LOOP_DASHBOARD_PORT", "LOOP_TEST_POSTGRES_URL", "LOOP_TEST_CHROMIUM"}
"""Variables that are no settings of Loop: of the compose file itself, and of the tests."""

_PINS = re.compile(r"^([\w.-]+)==(\S+)((?:.*\n)(?:    --hash=\S+(?: \\)?\n)+)", re.MULTILINE)


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return each package's version and hashes, as a lock file pins them."""
    found = _PINS.findall((ROOT / name).read_text("utf-8"))
    return {package: (version, frozenset(re.findall(r"--hash=(\S+)", rest))) for package, version, rest in found}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_setting_named_is_one(path: Path) -> None:
    named = set(re.findall(r"\bLOOP_[A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8")))
    known = {variable for name, setting in SETTINGS.items() for variable in setting.variables(name)}
    assert named - known - OF_COMPOSE == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_named_is_one(path: Path) -> None:
    text = path.read_text("utf-8")
    forms = (
        r"(?:bin/loop|-c 'loop|&& exec loop|loop loop|\"loop|\.pyz) ([a-z][a-z-]+)",  # units, Kamal, containers
        r"\[\"?loop\"?, \"?([a-z][a-z-]+)",  # as a list
        r"`loop ([a-z][a-z-]+)",
    )
    named = {command for form in forms for command in re.findall(form, text)}
    assert named - set(getattr(get_command(app), "commands")) == set()  # noqa: B009 - typer does not say that it is a group


def test_commands_are_found_in_the_files() -> None:
    text = "".join(path.read_text("utf-8") for path in FILES)
    assert {"serve", "migrate", "health"} <= set(re.findall(r"loop\"?,? \"?([a-z]+)", text))


def test_what_loop_runs_on_is_pinned_as_everywhere() -> None:
    runtime, everything = pins("requirements-runtime.lock"), pins("requirements.lock")
    assert {name: pin for name, pin in runtime.items() if everything.get(name) != pin} == {}, "run `just lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {re.split(r"[\[<>=]", requirement, maxsplit=1)[0] for requirement in project["dependencies"]}
    assert named - set(runtime) == set(), "run `just lock`"
    assert "pytest" not in runtime


def test_the_image_is_of_the_oldest_python_and_runs_as_a_number() -> None:
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE))
    assert bases == {"python:3.11-slim-bookworm"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    (user,) = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # Kubernetes cannot see of a name that it is not root


def test_only_what_is_named_gets_into_the_image() -> None:
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_jobs_may_little(path: Path) -> None:
    text = path.read_text("utf-8")
    used = re.findall(r"uses: (?!\./)(\S+)", text)
    assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []
    assert re.search(r"^permissions:(?: \{\}|\n  contents: read)$", text, re.MULTILINE)
    assert text.count("timeout-minutes:") == text.count("runs-on:")


def test_kamal_finds_what_terraform_makes() -> None:
    servers = (ROOT / "deploy" / "terraform" / "servers.tf").read_text("utf-8")
    made = set(re.findall(r"10\.20\.1\.\d+\b", servers))
    used = {
        address
        for name in ("deploy.yml", "deploy.staging.yml", "secrets.example")
        for address in re.findall(r"10\.20\.1\.\d+\b", (ROOT / "deploy" / "kamal" / name).read_text("utf-8"))
    }
    assert used
    assert used - made == set()


def test_no_secret_lies_in_the_tree() -> None:
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    kamal = {"/deploy/kamal/secrets", "/deploy/kamal/secrets.*"}
    assert {"/deploy/compose/secrets*/", *kamal, ".terraform/", "*.tfstate*"} <= set(ignored)
    long_hex = re.compile(r"(?<![0-9a-f@])[0-9a-f]{40,}(?![0-9a-f])")
    assert [path for path in FILES if long_hex.search(path.read_text("utf-8"))] == []


def test_compose_finds_the_secrets_that_are_made_and_loop_reads_them(tmp_path: Path) -> None:
    there = tmp_path / "compose"
    shutil.copytree(ROOT / "deploy" / "compose", there, ignore=shutil.ignore_patterns("secrets*"))
    make = [str(there / "make-secrets"), "https://pay.example.com"]
    subprocess.run(make, check=True, capture_output=True)
    made = {f"secrets/{path.name}" for path in (there / "secrets").iterdir()}
    assert set(re.findall(r"secrets/[\w.-]+", (there / "compose.yaml").read_text("utf-8"))) == made
    settings = load({}, {"LOOP_CONFIG": str(there / "secrets" / "loop.toml")})
    assert (settings.checkout_base_url, settings.otel_exporter_otlp_endpoint) == (
        "https://pay.example.com",
        "http://otel-collector:4318",
    )
    lines = "".join((there / "secrets" / f"{name}.env").read_text() for name in ("openobserve", "otel-collector"))
    shown = dict(line.split("=", 1) for line in lines.splitlines())
    kind, encoded = shown["OTLP_BACKEND_AUTHORIZATION"].split()
    name_and_password = f"{shown['ZO_ROOT_USER_EMAIL']}:{shown['ZO_ROOT_USER_PASSWORD']}"
    assert (kind, b64decode(encoded).decode()) == ("Basic", name_and_password)
    again = subprocess.run(make, check=False, capture_output=True)
    assert again.returncode == 1


def test_what_is_packed_by_one_python_runs_on_every_patch_release_of_it() -> None:
    """`loop.pyz` holds what the Python that made it needs, and is promised to run on others of its minor version."""
    lines = (ROOT / "requirements-runtime.lock").read_text("utf-8").splitlines()
    assert [line for line in lines if re.search(r"python_full_version [<>=!]+ '3\.\d+\.[1-9]", line)] == []
