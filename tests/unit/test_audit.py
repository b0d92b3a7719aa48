"""The audit of what is installed: a known vulnerability fails it, a closed network does not, and it says which."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"
OURS = {"name": "label-studio-propagate", "version": "0", "vulns": []}
SOUND = {"name": "flask", "version": "3.0", "vulns": []}
FLAWED = {"name": "pillow", "version": "9.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["9.1", "9.2"]}]}
UNKNOWN = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2)"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": [OURS, *packages], "fixes": []})


def test_a_known_vulnerability_fails_and_is_listed(audit: Any) -> None:
    said, code = audit.judged(report(SOUND, FLAWED), "Found 1 known vulnerability in 1 package")
    assert code == 1
    assert said.splitlines() == ["1 known vulnerabilities:", "pillow 9.0: PYSEC-1, fixed in ['9.1', '9.2']"]


def test_a_clean_audit_passes_and_says_of_how_many(audit: Any) -> None:
    assert audit.judged(report(SOUND), "") == ("audited: 1 packages, no known vulnerability", 0)


def test_packages_that_the_service_does_not_know_are_told_in_one_loud_line(audit: Any) -> None:
    said, code = audit.judged(report(UNKNOWN, UNKNOWN), "No known vulnerabilities found")
    assert code == 0
    assert said == "NOT AUDITED: 2 of 2 packages are unknown to the service (numpy, numpy)"


def test_some_unknown_packages_hide_neither_what_is_clean_nor_what_is_flawed(audit: Any) -> None:
    said, code = audit.judged(report(UNKNOWN, SOUND), "")
    assert code == 0
    assert said.splitlines()[0].startswith("NOT AUDITED: 1 of 2 ")
    assert said.splitlines()[1] == "audited: 1 packages, no known vulnerability"
    said, code = audit.judged(report(UNKNOWN, FLAWED), "")
    assert code == 1
    assert "NOT AUDITED" in said
    assert "PYSEC-1" in said


@pytest.mark.parametrize("answer", ["", "{}", "[]", "Traceback", "null"])
def test_no_report_at_all_passes_with_the_reason(audit: Any, answer: str) -> None:
    said, code = audit.judged(answer, "Traceback …\nConnectionError: the network is closed\n")
    assert code == 0
    assert said.startswith("NOT AUDITED: ")
    assert "ConnectionError: the network is closed" in said
    assert len(said.splitlines()) == 1


def test_a_service_that_never_answers_is_given_up(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert audit.MOST_SECONDS < 60
    monkeypatch.setattr(audit, "MOST_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        begin = time.monotonic()
        assert audit.main() == 0
    assert time.monotonic() - begin < 20
    assert (
        capsys.readouterr().out
        == "NOT AUDITED: known vulnerabilities could not be looked up (no answer within 2 s)\n"
    )
