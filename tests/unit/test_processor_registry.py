"""The registry: found without importing, made once at first use, closed to the last."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from loop.domain.errors import LoopError
from loop.processors import registry as registry_module
from loop.processors.base import ProcessorSetup
from loop.processors.registry import Registry
from loop.processors.sandbox import SandboxProcessor


def setup_for(name: str) -> ProcessorSetup:
    return ProcessorSetup(
        api_base=f"http://{name}.example", timeout_s=5, public_url="http://loop.example", challenge_secret=b"s"
    )


async def test_made_once_with_its_own_setup() -> None:
    asked: list[str] = []

    def noted(name: str) -> ProcessorSetup:
        asked.append(name)
        return setup_for(name)

    registry = Registry(noted)
    assert {"sandbox", "stripe"} <= set(registry.names())
    assert asked == []
    sandbox = registry.get("sandbox")
    assert isinstance(sandbox, SandboxProcessor)
    assert registry.get("sandbox") is sandbox
    assert asked == ["sandbox"]
    assert [each.name for each in registry.credentials_schema("stripe")] == [
        "secretKey", "publishableKey", "webhookSecret"
    ]  # fmt: skip
    await registry.close()


async def test_unknown_processor_is_refused() -> None:
    with pytest.raises(LoopError) as caught:
        Registry(setup_for).get("no-such-processor")
    assert caught.value.code == "invalid_processor"


async def test_plug_in_that_is_no_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint(name="broken", value="tests.unit.test_processor_registry:NoProcessor", group="loop.processors")
    monkeypatch.setattr(registry_module, "entry_points", lambda **_: [broken])
    with pytest.raises(TypeError, match="NoProcessor"):
        Registry(setup_for).get("broken")


class NoProcessor:
    """Takes a setup and offers nothing."""

    def __init__(self, setup: ProcessorSetup) -> None:
        self.setup = setup


class Stubborn(SandboxProcessor):
    """Fails to close."""

    async def close(self) -> None:
        await super().close()
        raise OSError("stubborn")


class Quiet(SandboxProcessor):
    """Remembers that it was closed."""

    closed = 0

    async def close(self) -> None:
        await super().close()
        Quiet.closed += 1


async def test_all_are_closed_though_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests.unit.test_processor_registry"
    found = [EntryPoint(name=name, value=f"{here}:{name}", group="loop.processors") for name in ("Quiet", "Stubborn")]
    monkeypatch.setattr(registry_module, "entry_points", lambda **_: found)
    registry = Registry(setup_for)
    for name in registry.names():
        registry.get(name)
    before = sys.modules[here].Quiet.closed
    with pytest.raises(OSError, match="stubborn"):
        await registry.close()
    assert sys.modules[here].Quiet.closed == before + 1


def test_names_import_no_processor() -> None:
    code = (
        "import sys; from loop.processors.registry import Registry; Registry(lambda name: None).names(); "
        "print('stripe' in sys.modules, 'loop.processors.sandbox' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
