"""Artefacts: immutable folders with a manifest, which is how one step hands its work to the next."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propagation.errors import ArtefactError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artefact:
    """A folder whose files never change.

    fingerprint: 64 hex digits over kind, settings, parents and the content of every file.
    parents: the fingerprints of the artefacts that it was made from.
    """

    folder: Path
    kind: str
    fingerprint: str
    settings: Mapping[str, Any]
    parents: Sequence[str]


def write_artefact(
    root: Path,
    kind: str,
    settings: Mapping[str, Any],
    parents: Sequence[str],
    fill: Callable[[Path], None],
) -> Artefact:
    """Let ``fill`` write files into an empty folder, then give it a manifest and its place below ``root``.

    The same content ends in the same folder. Whatever fails, nothing half-written stays.
    """
    root.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=root))
    try:
        fill(draft)
        body = {"kind": kind, "settings": dict(settings), "parents": list(parents), "files": _files(draft)}
        fingerprint = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        (draft / MANIFEST).write_text(json.dumps({"fingerprint": fingerprint, **body}, indent=1))
        folder = root / f"{kind}-{fingerprint[:12]}"
        if not folder.exists():
            draft.chmod(0o755)
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return read_artefact(folder, kind)


def read_artefact(folder: Path, kind: str) -> Artefact:
    """The artefact in a folder. Raises ArtefactError when it is missing, cut short, or of another kind."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = Artefact(folder, *(manifest[name] for name in ("kind", "fingerprint", "settings", "parents")))
        files = manifest["files"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{folder} is no artefact folder ({error}); run the step that makes it") from error
    if found.kind != kind:
        raise ArtefactError(f"{folder} holds {found.kind!r}, not {kind!r}; name the other folder")
    for name, (size, _) in files:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ArtefactError(f"{path} is missing or changed since it was written; make the artefact again")
    return found


def _files(folder: Path) -> dict[str, tuple[int, str]]:
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = (path.stat().st_size, digest)
    return found
