"""All checks in order: what one of them needs, another one found before; none stops the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ls_propagate.doctor import machine, server
from ls_propagate.doctor.case import Case, Check, Finding, Found, bad
from ls_propagate.logs import hider
from ls_propagate.settings import secrets_outside
from propagation.errors import PropagateError

#: name, the checks that it needs, the check
CHECKS: Sequence[tuple[str, Sequence[str], Check]] = (
    ("settings", (), machine.settings),
    ("folder", ("settings",), machine.folder),
    ("store", ("settings",), machine.store),
    ("artefacts", ("store",), machine.artefacts),
    ("mirror", ("store",), machine.mirror),
    ("server", ("settings",), server.server),
    ("clock", ("server",), server.clock),
    ("token", ("server",), server.token),
    ("permissions", ("token",), server.permissions),
    ("hotkey", ("token",), server.hotkey),
    ("project", ("store", "token"), server.project),
    ("labeling", ("project",), server.labeling),
    ("account", ("project",), server.account),
    ("pages", ("project",), server.pages),
    ("network", ("project",), server.network),
    ("imports", ("project",), server.imports),
    ("webhooks", ("project",), server.webhooks),
    ("images", ("labeling",), server.images),
    ("daemon", ("store",), machine.daemon),
)


def examine(config: Path | None = None) -> Iterator[Finding]:
    """A finding a check, as they are made; none holds a secret. config: the settings file, as for commands."""
    case = Case(config)
    hide = hider(secrets_outside())
    lacking: set[str] = set()
    with case.closing:
        for name, needs, check in CHECKS:
            missed = [need for need in needs if need in lacking]
            found = Found("doubtful", f"not checked; it needs: {', '.join(missed)}", lacking=True)
            if not missed:
                found = _run(check, case)
            if found.lacking or found.state == "bad":
                lacking.add(name)
            if name == "settings" and name not in lacking:
                hide = hider({*secrets_outside(), *case.settings.secrets})
            finding = Finding(name, found.state, found.said, found.remedy)
            yield replace(finding, said=hide(finding.said), remedy=hide(finding.remedy))


def _run(check: Check, case: Case) -> Found:
    try:
        return check(case)
    except PropagateError as error:
        said, _, remedy = str(error).rpartition("; ")
        return bad(said or remedy, remedy if said else "")
    except Exception as error:  # a fault of one check must not hide what the others find
        return bad(f"the check itself failed ({type(error).__name__}: {error})", "report this, please")
