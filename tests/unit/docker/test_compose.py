"""The files of docker/: their variables, their settings, the images' lint, and that nothing is left to chance."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ls_propagate.demo.postgres import USER
from ls_propagate.settings import Settings, load_settings
from plugin import web
from plugin.label_studio.inspect import QUICK_IMPORTS
from plugin.label_studio.pages import KEYMAP
from propagation.errors import SettingsError

DOCKER = Path(__file__).parents[3] / "docker"
FILES = ("compose.yaml", "join.yaml")


@pytest.fixture
def variables(stack: ModuleType, tmp_path: Path) -> dict[str, str]:
    found: dict[str, str] = stack.read_env(tmp_path / ".env")
    return found


def test_secrets_are_made_once_and_kept_for_their_owner_alone(stack: ModuleType, tmp_path: Path) -> None:
    made = stack.read_env(tmp_path / ".env")
    assert re.fullmatch("[0-9a-f]{40}", made["LABEL_STUDIO_TOKEN"])
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert stack.read_env(tmp_path / ".env") == made
    assert len({value for name, value in made.items() if "PASSWORD" in name}) == 4


def test_every_variable_of_the_compose_file_is_in_the_example_and_no_other() -> None:
    named = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    assert set(re.findall(r"^#?([A-Z_]+)=", (DOCKER / "example.env").read_text(), re.MULTILINE)) == named


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
def test_variables_are_filled_in_as_compose_does(stack: ModuleType, value: Any, filled: Any) -> None:
    assert stack.filled(value, {"A": "one", "EMPTY": ""}) == filled


def test_what_is_not_set_is_named(stack: ModuleType) -> None:
    with pytest.raises(SettingsError, match=r"DAEMON_PASSWORD is not set: a password"):
        stack.filled("${DAEMON_PASSWORD:?a password}", {})


@pytest.mark.parametrize("name", FILES)
def test_what_our_services_are_told_are_settings_with_which_they_start(
    stack: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = re.findall(r"\$\{(\w+):\?", (DOCKER / name).read_text())
    given = dict.fromkeys(needed, "x1") | {"LABEL_STUDIO_URL": "https://labels.example.com"}
    for service, body in stack.read_services(given, DOCKER / name).items():
        if "build" not in body:
            continue
        stage = (DOCKER / "Dockerfile").read_text().split(f"\nFROM runtime AS {body['build']['target']}\n")[1]
        baked = dict(re.findall(r"(LS_PROPAGATE_\w+)=(\S+)", stage.split("\nFROM ")[0]))
        for variable, value in (baked | body["environment"]).items():
            assert variable.removeprefix("LS_PROPAGATE_").lower() in Settings.model_fields, variable
            monkeypatch.setenv(variable, value)
        settings = load_settings(None)
        password = getattr(settings, f"{service}_password")
        web.check_exposure(getattr(settings, f"{service}_host"), {"its password": password.get_secret_value()})
        assert getattr(settings, f"{service}_host") == "0.0.0.0"
        assert str(getattr(settings, f"{service}_port")) in stage.split("HEALTHCHECK")[1]


@pytest.mark.parametrize("name", FILES)
def test_ports_are_this_machines_alone_unless_told_otherwise(name: str) -> None:
    for service in yaml.safe_load((DOCKER / name).read_text())["services"].values():
        for port in service.get("ports", ()):
            assert re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", port)


def test_label_studio_is_started_as_the_product_needs_it(stack: ModuleType, variables: dict[str, str]) -> None:
    environment = stack.read_services(variables)["label-studio"]["environment"]
    assert json.loads(environment["EDITOR_KEYMAP"]) == {name: dict(keys) for name, keys in KEYMAP.items()}
    assert environment[QUICK_IMPORTS] == "true"
    assert environment["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
    assert environment["USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert environment["POSTGRE_USER"] == USER


def test_the_images_do_not_run_as_root_and_say_whether_they_are_well() -> None:
    stages = re.split(r"^FROM ", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.split(" AS ")[1].split()[0]: stage for stage in stages}
    assert re.search(r"^USER [1-9]\d*$", by_name["runtime"], re.MULTILINE)
    for name in ("daemon", "backend"):
        assert by_name[name].startswith("runtime ")
        assert "\nHEALTHCHECK " in by_name[name]
        assert "\nUSER" not in by_name[name]


def test_hadolint_has_nothing_to_say() -> None:
    program = Path(sys.executable).parent / "hadolint"
    said = subprocess.run(
        [program, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stdout) == (0, "")
