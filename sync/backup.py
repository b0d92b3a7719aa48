"""A store and the artefacts it builds on in one file, which any store can be made from again.

The file is a zip archive: ``tables/<table>.jsonl`` holds a JSON object a row, the same whichever database it
came from; ``artefacts/<folder>/…`` the artefacts; ``manifest.json`` the schema, and of each member its size and
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import sqlalchemy as sa

from propagation.errors import StoreError
from sync.database import utc
from sync.store import EVENTS, FACTS, INBOX, SCHEMA, TASKS, Store

Members = dict[str, tuple[int, str]]  # size in bytes and SHA-256, by name

FORMAT = "label-studio-propagate backup"
MANIFEST = "manifest.json"
ROWS_AT_ONCE = 1000
BLOCK = 1 << 20  # bytes
_TABLES = (EVENTS, TASKS, FACTS, INBOX)
# what reading a file may raise that is no zip archive, or whose manifest and rows were made up
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def backup(store: Store, artefacts: Path, file: Path) -> None:
    """Write ``file`` from one state of the store, while daemons may run, and from the folders in ``artefacts``.

    A file of that name is replaced once the new one is complete. Raises StoreError where it cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                _write(archive, store, artefacts)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except OSError as error:
        raise StoreError(
            f"the backup {file} cannot be written ({error}); make room, or name another file"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _write(archive: zipfile.ZipFile, store: Store, artefacts: Path) -> None:
    counts: dict[str, int] = {}
    members: Members = {}
    with store.database.reading() as connection:
        for table in _TABLES:
            query = sa.select(table).order_by(*table.primary_key).execution_options(yield_per=ROWS_AT_ONCE)
            rows = connection.execute(query)
            lines = (json.dumps(row._asdict(), default=utc).encode() + b"\n" for row in rows)
            name = _member(table)
            members[name], counts[table.name] = _add(archive, name, lines)
    # what the tables refer to was there before they did, and never changes
    for folder in sorted(path for path in artefacts.glob("[!.]*") if path.is_dir()):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with path.open("rb") as content:
                name = f"artefacts/{path.relative_to(artefacts).as_posix()}"
                members[name], _ = _add(archive, name, iter(partial(content.read, BLOCK), b""))
    manifest = {"format": FORMAT, "schema": SCHEMA, "made": utc(datetime.now(UTC)), "rows": counts}
    archive.writestr(MANIFEST, json.dumps({**manifest, "members": members}, indent=1))


def _add(archive: zipfile.ZipFile, name: str, parts: Iterator[bytes]) -> tuple[tuple[int, str], int]:
    """Write a member; its size and digest, and the number of parts."""
    digest, size, count = hashlib.sha256(), 0, 0
    with archive.open(name, "w", force_zip64=True) as member:
        for part in parts:
            member.write(part)
            digest.update(part)
            size, count = size + len(part), count + 1
    return (size, digest.hexdigest()), count


def restore(file: Path, store: Store, artefacts: Path) -> None:
    """Fill an empty store, and the folder ``artefacts``, from a backup: all of it or nothing.

    The store may be of another kind than the one it comes from. Rows of an earlier schema are loaded by the
    names of their columns, and columns added since take their defaults; those of a later one are refused.
    Artefacts that are there already, with the same content, stay. Raises StoreError for a file that is
    broken or no backup, a store that holds anything or is written to, and an artefact folder that differs.
    """
    lock = store.lock()
    before = lock.held()
    if not lock.acquire():
        raise StoreError(f"a daemon runs on the store {store.url}; stop it, then restore again")
    draft = None
    try:
        artefacts.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".restore-", dir=artefacts))
        with _opened(file) as archive:
            members = _check(archive, file)
            folders = [name for name in _unpack(archive, members, draft) if _lacks(artefacts, name, members)]
            with _undone() as placed, store.database.writing() as connection:
                _load(archive, members, connection, store.url)
                for name in folders:
                    placed.append((draft / name).rename(artefacts / name))
    except OSError as error:
        raise StoreError(
            f"the backup {file} cannot be restored ({error}); make room, or name another file"
        ) from error
    finally:
        if draft:
            shutil.rmtree(draft, ignore_errors=True)
        if not before:
            lock.release()


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with file.open("rb") as content, zipfile.ZipFile(content) as archive:
            yield archive
    except _BROKEN as error:
        raise StoreError(
            f"{file} is broken, or no backup ({error or type(error).__name__}); take another"
        ) from error


def _check(archive: zipfile.ZipFile, file: Path) -> Members:
    """What a backup says that it holds; it holds just that, and nothing whose name leads anywhere else."""
    manifest = json.loads(archive.read(MANIFEST))
    if manifest["format"] != FORMAT:
        raise ValueError(f"its format is {manifest['format']!r}")
    if manifest["schema"] > SCHEMA:
        raise StoreError(
            f"{file} has schema {manifest['schema']}, this version knows {SCHEMA}; update it, then restore again"
        )
    members: Members = {name: (size, digest) for name, (size, digest) in manifest["members"].items()}
    if sorted(archive.namelist()) != sorted([*members, MANIFEST]):
        raise ValueError("it lacks members, or has others than its manifest says")
    tables = {_member(table) for table in _TABLES}
    for info in archive.infolist():
        kind, name = stat.S_IFMT(info.external_attr >> 16), info.filename
        path = PurePosixPath(name)
        inside = str(path) == name and ".." not in path.parts and "\\" not in name and ":" not in name
        if kind not in (0, stat.S_IFREG) or not inside:
            raise ValueError(f"{name!r} is no plain file inside it")
        artefact = path.parts[0] == "artefacts" and len(path.parts) > 2 and not path.parts[1].startswith(".")
        if not artefact and name not in tables and name != MANIFEST:
            raise ValueError(f"{name!r} belongs to no backup")
    return members


def _parts(archive: zipfile.ZipFile, members: Members, name: str, lines: bool = False) -> Iterator[bytes]:
    """A member bit by bit, or line by line. Raises ValueError in the end if it is not as the manifest says."""
    digest, size = hashlib.sha256(), 0
    with archive.open(name) as member:
        for part in iter(member.readline if lines else partial(member.read, BLOCK), b""):
            digest.update(part)
            size += len(part)
            if size > members[name][0]:
                break
            yield part
    if (size, digest.hexdigest()) != members[name]:
        raise ValueError(f"{name!r} was changed")


def _unpack(archive: zipfile.ZipFile, members: Members, draft: Path) -> list[str]:
    """Write the artefacts below ``draft``; their names."""
    for name in members:
        if name.startswith("artefacts/"):
            path = draft.joinpath(*PurePosixPath(name).parts[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                out.writelines(_parts(archive, members, name))
                out.flush()
                os.fsync(out.fileno())
    return sorted(path.name for path in draft.iterdir())


def _lacks(artefacts: Path, name: str, members: Members) -> bool:
    """Whether a folder is still to be made. Raises StoreError where it is there with another content."""
    folder = artefacts / name
    if not folder.exists():
        return True
    there = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            there[f"artefacts/{path.relative_to(artefacts).as_posix()}"] = (path.stat().st_size, digest)
    if there != {member: known for member, known in members.items() if member.startswith(f"artefacts/{name}/")}:
        raise StoreError(f"{folder} has another content than in the backup; move it away, then restore again")
    return False


@contextmanager
def _undone() -> Iterator[list[Path]]:
    """Folders put down in the list are removed where what follows fails."""
    placed: list[Path] = []
    try:
        yield placed
    except BaseException:
        for folder in placed:
            shutil.rmtree(folder)
        raise


def _load(archive: zipfile.ZipFile, members: Members, connection: sa.Connection, url: str) -> None:
    """Fill the tables; the schema that is remembered stays that of the store."""
    for table in _TABLES:
        own = sa.true() if table is not FACTS else FACTS.c.name != "schema"
        if table is not INBOX and connection.execute(sa.select(table).where(own).limit(1)).first():
            raise StoreError(f"the store {url} is not empty; restore into a new one")
    for table in _TABLES:
        name = _member(table)
        if name in members:
            rows = (_row(table, part) for part in _parts(archive, members, name, lines=True))
            kept = (row for row in rows if (table, row.get("name")) != (FACTS, "schema"))
            while some := list(islice(kept, ROWS_AT_ONCE)):
                connection.execute(sa.insert(table), some)


def _member(table: sa.Table) -> str:
    return f"tables/{table.name}.jsonl"


def _row(table: sa.Table, part: bytes) -> dict[str, Any]:
    row = json.loads(part)
    if unknown := set(row) - set(table.columns.keys()):
        raise ValueError(f"{table.name} has no column {', '.join(sorted(unknown))}")
    if "at" in row:
        row["at"] = datetime.fromisoformat(row["at"]).astimezone(UTC)
    if table is INBOX:
        del row["id"]  # the database numbers them, and goes on from there
    return row
