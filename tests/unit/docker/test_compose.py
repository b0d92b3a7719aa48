"""The compose files: their variables, their settings, and that nothing in them is left to chance."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ls_propagate.settings import Settings
from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.pages import KEYMAP
from propagation.errors import SettingsError

DOCKER = Path(__file__).parents[3] / "docker"
FILES = ("compose.yaml", "join.yaml")


@pytest.fixture(scope="module")
def tool() -> Any:
    """docker/stack.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("stack", DOCKER / "stack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stack"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def variables(tool: Any, tmp_path: Path) -> dict[str, str]:
    found: dict[str, str] = tool.read_env(tmp_path / ".env")
    return found


def test_secrets_are_made_once_and_kept_for_their_owner_alone(tool: Any, tmp_path: Path) -> None:
    made = tool.read_env(tmp_path / ".env")
    assert re.fullmatch("[0-9a-f]{40}", made["LABEL_STUDIO_TOKEN"])
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert tool.read_env(tmp_path / ".env") == made
    assert len({value for name, value in made.items() if "PASSWORD" in name}) == 4


def test_every_variable_of_the_compose_file_is_in_the_example(variables: dict[str, str]) -> None:
    text = (DOCKER / "compose.yaml").read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    assert named - set(variables) == {"POSTGRES_USER"}
    assert set(variables) <= named


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ("${A}", "one"),
        ("${A:-two}", "one"),
        ("${B:-two}", "two"),
        ("${EMPTY:-two}", "two"),
        ("${B:-}", ""),
        ("$${A} costs $$5", "${A} costs $5"),
        (["${A}", {"x": "${A}/${A}"}], ["one", {"x": "one/one"}]),
        (5432, 5432),
    ],
)
def test_variables_are_filled_in_as_compose_does(tool: Any, value: Any, filled: Any) -> None:
    assert tool.filled(value, {"A": "one", "EMPTY": ""}) == filled


def test_what_is_not_set_is_named(tool: Any) -> None:
    with pytest.raises(SettingsError, match=r"DAEMON_PASSWORD is not set: a password"):
        tool.filled("${DAEMON_PASSWORD:?a password}", {})


@pytest.mark.parametrize("name", FILES)
def test_what_our_services_are_told_are_settings(tool: Any, name: str) -> None:
    text = (DOCKER / name).read_text()
    variables = dict.fromkeys(re.findall(r"\$\{(\w+)", text), "x")
    services = tool.read_services(variables, DOCKER / name)
    for service in ("daemon", "backend"):
        for variable in services[service]["environment"]:
            known = variable.removeprefix("LS_PROPAGATE_").lower()
            assert known in Settings.model_fields, variable
        assert services[service]["build"]["target"] in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize("name", FILES)
def test_ports_are_this_machines_alone_unless_told_otherwise(name: str) -> None:
    for service in yaml.safe_load((DOCKER / name).read_text())["services"].values():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port)


def test_label_studio_is_started_as_the_product_needs_it(tool: Any, variables: dict[str, str]) -> None:
    environment = tool.read_services(variables)["label-studio"]["environment"]
    assert json.loads(environment["EDITOR_KEYMAP"]) == {name: dict(keys) for name, keys in KEYMAP.items()}
    assert environment[QUICK_IMPORTS] == "true"
    assert environment["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
    assert environment["USE_DEFAULT_BANNED_SUBNETS"] == "false"


def test_the_images_do_not_run_as_root_and_say_whether_they_are_well() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    assert [stage.split(" AS ")[1].split()[0] for stage in stages] == ["build", "runtime", "backend", "daemon"]
    assert "\nUSER propagate\n" in stages[1]
    assert all("HEALTHCHECK" in stage and "USER" not in stage for stage in stages[2:])
