"""Artefacts: the same content in the same folder, nothing half-written, nothing changed unnoticed."""

import json

import pytest

from propagation.artefacts import MANIFEST, read_artefact, write_artefact
from propagation.errors import ArtefactError


def write(root, content="content", kind="masks", settings=None, parents=()):
    def fill(folder):
        (folder / "deep").mkdir()
        (folder / "deep" / "file.txt").write_text(content)

    return write_artefact(root, kind, settings or {"a": 1}, parents, fill)


def test_an_artefact_is_read_as_it_was_written(tmp_path):
    made = write(tmp_path, settings={"a": [1, 2]}, parents=["p"])
    assert read_artefact(made.folder, "masks") == made
    assert (made.kind, made.settings, made.parents) == ("masks", {"a": [1, 2]}, ["p"])
    assert (made.folder / "deep" / "file.txt").read_text() == "content"
    assert len(made.fingerprint) == 64


def test_the_same_content_ends_in_the_same_folder(tmp_path):
    assert write(tmp_path) == write(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"content": "other"}, {"settings": {"a": 2}}, {"parents": ["p"]}, {"kind": "trees"}]
)
def test_other_content_settings_parents_or_kind_end_in_another_folder(tmp_path, change):
    one, other = write(tmp_path), write(tmp_path, **change)
    assert one.folder != other.folder
    assert one.fingerprint != other.fingerprint


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fill(folder):
        (folder / "half.txt").write_text("half")
        raise RuntimeError("no room left")

    with pytest.raises(RuntimeError, match="no room left"):
        write_artefact(tmp_path, "masks", {}, [], fill)
    assert list(tmp_path.iterdir()) == []


def truncate(folder):
    (folder / "deep" / "file.txt").write_text("cont")


def lose(folder):
    (folder / "deep" / "file.txt").unlink()


def grow(folder):
    (folder / "deep" / "file.txt").write_text("content and more")


@pytest.mark.parametrize("harm", [truncate, lose, grow])
def test_a_file_that_changed_is_noticed_by_name(tmp_path, harm):
    made = write(tmp_path)
    harm(made.folder)
    with pytest.raises(ArtefactError, match=r"file\.txt is missing or changed"):
        read_artefact(made.folder, "masks")


def test_another_kind_is_refused(tmp_path):
    made = write(tmp_path)
    with pytest.raises(ArtefactError, match="holds 'masks', not 'trees'"):
        read_artefact(made.folder, "trees")


@pytest.mark.parametrize(
    "manifest", [None, "", "{", "[]", "{}", "7", json.dumps({"kind": "masks", "files": {}}), b"\xff\xfe"]
)
def test_a_folder_without_a_whole_manifest_is_no_artefact(tmp_path, manifest):
    folder = write(tmp_path).folder
    path = folder / MANIFEST
    path.unlink()
    if isinstance(manifest, bytes):
        path.write_bytes(manifest)
    elif manifest is not None:
        path.write_text(manifest)
    with pytest.raises(ArtefactError, match="is no artefact folder"):
        read_artefact(folder, "masks")
