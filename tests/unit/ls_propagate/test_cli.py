"""The command line: it teaches, it answers machines, and it fails in one line."""

import json
import logging
import sys
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ls_propagate import cli, pipeline, service
from ls_propagate.doctor.case import Finding
from propagation.errors import ImageError, StoreError
from propagation.events import Commanded, CommandRefused

COMMANDS = sorted(get_command(cli.app).commands)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line as the console script does: exit code, output, errors."""

    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["ls-propagate", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    with warnings.catch_warnings():
        yield main
        logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def configured(office, tmp_path):
    """The office's settings as a file, its campaign clustered."""
    office.prepared()
    segmenter = office.settings.segmenter
    strategy = {name: value for name, value in asdict(office.settings.strategy).items() if value is not None}
    lines = [
        f"data_dir = {json.dumps(str(office.settings.data_dir))}",
        "[segmenter]",
        'name = "precomputed"',
        f"predictions = {json.dumps(str(segmenter.predictions))}",
        f"images = {json.dumps(str(segmenter.images))}",
        "[strategy]",
        *(f"{name} = {json.dumps(value)}" for name, value in strategy.items()),
    ]
    (tmp_path / "ls-propagate.toml").write_text("\n".join(lines))
    return office


def test_the_commands_are_those_of_the_main_job():
    assert set(COMMANDS) >= {"connect", "detect", "cluster", "sync", "status", "export", "backend", "demo"} | {
        "doctor",
        "backup",
        "restore",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command):
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0
    told = get_command(cli.app).commands[command]
    assert told.help
    assert told.help.split()[0] in shown.output
    assert told.help.rstrip().endswith(".")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"demo"}))
def test_every_option_of_a_command_is_explained(command):
    for parameter in get_command(cli.app).commands[command].params:
        assert parameter.name == "help" or parameter.help, parameter.name


def test_without_a_command_the_help_is_shown(run):
    _, out, err = run()
    assert "connect, detect, cluster, then sync" in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "no table yet; run: ls-propagate detect"),
        (["export", "out.json"], "no table yet; run: ls-propagate detect"),
        (["detect"], "LABEL_STUDIO_API_KEY"),
        (["connect", "cells"], "LABEL_STUDIO_API_KEY"),
        (["status", "--config", "/nowhere/" + "long-" * 30 + ".toml"], "there is no settings file /nowhere/long-"),
        (["backend"], "no segmenter is set"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_an_error_in_brackets_is_told_as_it_is(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[red]x[bold].toml").write_text("a = ")
    _, _, err = run("status", "--config", "[red]x[bold].toml")
    assert "[red]x[bold].toml is not TOML" in err


def test_a_command_misspelt_is_exit_code_2(run):
    assert run("clustr")[0] == 2


def test_a_server_for_others_without_a_password_is_not_started(run, configured, monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_BACKEND_HOST", "0.0.0.0")
    code, _, err = run("backend")
    assert code == 1
    assert "LS_PROPAGATE_BACKEND_PASSWORD" in err


def test_the_status_for_machines_is_json(run, configured):
    configured.finished()
    code, out, _ = run("status", "--json")
    said = json.loads(out)
    assert code == 0
    assert [row["category"] for row in said["categories"]] == ["x", "Y"]
    assert (said["total"]["masks"], said["total"]["accepted"], said["total"]["rejected"]) == (24, 16, 8)
    assert said["claim"] == "estimate"


def test_the_status_for_people_says_what_is_only_an_estimate(run, configured):
    configured.finished()
    code, out, _ = run("status")
    assert code == 0
    assert "total" in out
    assert "estimate" in out
    assert "0 pages wait" in out


def test_export_writes_the_accepted_masks_whole(run, configured, tmp_path):
    configured.finished()
    code, out, _ = run("export", "[b]out.json")
    assert code == 0
    assert "16 masks in 2 images: [b]out.json" in out
    assert len(json.loads((tmp_path / "[b]out.json").read_text())["annotations"]) == 16
    assert not list(tmp_path.glob("*.part"))


def test_images_left_out_are_told_on_stderr(run, configured, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "x.y.z")
    table = pipeline.load_table(configured.store, configured.settings)
    monkeypatch.setattr(pipeline, "open_gateway", lambda *_: nullcontext(configured.gateway))
    monkeypatch.setattr(pipeline, "detect", lambda *_: (table, [ImageError("image [b]: broken")]))
    code, out, err = run("detect")
    assert code == 0
    assert "left out: image [b]: broken" in err
    assert "24 masks in 2 images" in out


def test_a_backup_restores_the_campaign_elsewhere(run, configured, tmp_path, monkeypatch):
    configured.finished()
    code, out, _ = run("backup", "[b]kept.zip")
    assert code == 0
    assert "MB: [b]kept.zip" in out
    before = run("status", "--json")[1]
    monkeypatch.setenv("LS_PROPAGATE_DATA_DIR", str(tmp_path / "other"))
    code, out, _ = run("restore", "[b]kept.zip")
    assert code == 0
    assert "other/store.sqlite" in out
    assert run("status", "--json")[1] == before
    code, _, err = run("restore", "[b]kept.zip")
    assert code == 1
    assert err.startswith("error: ")


def test_nothing_is_no_backup(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("backup", "kept.zip")
    assert code == 1
    assert "no project is connected" in err
    assert not (tmp_path / "kept.zip").exists()


FOUND = [Finding("store", "good", "[b]all\n well"), Finding("token", "doubtful", "it ends", "make [another]")]


def test_the_doctor_tells_a_finding_a_line_with_its_remedy(run, monkeypatch):
    monkeypatch.setattr(cli, "examine", lambda config: iter([*FOUND, Finding("pages", "bad", "x" * 300, "y")]))
    code, out, err = run("doctor")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        "good     store: [b]all well",
        "doubtful token: it ends; make [another]",
        f"bad      pages: {'x' * 300}; y",
    ]


def test_the_doctor_for_machines_is_json_and_what_is_doubtful_is_no_failure(run, monkeypatch):
    monkeypatch.setattr(cli, "examine", lambda config: iter(FOUND))
    code, out, _ = run("doctor", "--json")
    assert code == 0
    assert json.loads(out)["findings"][1] == {
        "name": "token",
        "state": "doubtful",
        "said": "it ends",
        "remedy": "make [another]",
    }


def test_the_settings_say_how_every_command_logs(run, configured, monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_LOG_FORMAT", "json")
    monkeypatch.setenv("LS_PROPAGATE_LOG_LEVEL", "info")
    monkeypatch.setenv("LS_PROPAGATE_WEBHOOK_SECRET", "tok-3f9a")

    def told(*_):
        logging.getLogger("sync.daemon").info("heard of %s", "tok-3f9a")
        raise StoreError("the store holds tok-3f9a")

    monkeypatch.setattr(pipeline, "open_campaign", told)
    code, _, err = run("status")
    assert code == 1
    line, error = err.splitlines()
    assert json.loads(line)["message"] == "heard of ***"
    assert error == "error: the store holds ***"


def test_a_pass_of_the_daemon_is_told(run, configured, monkeypatch):
    monkeypatch.setattr(pipeline, "open_gateway", lambda *_: nullcontext(configured.gateway))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    code, out, err = run("sync", "--once")
    assert (code, err) == (0, "")
    assert "2 pages out, 0 images written" in out


def test_an_error_that_is_no_fault_of_the_user_is_told_whole_but_for_secrets(run, monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_DAEMON_PASSWORD", "tok-3f9a")

    def broken(*_):
        raise RuntimeError("a bug with tok-3f9a")

    monkeypatch.setattr(cli, "load_settings", broken)
    code, out, err = run("status")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a bug with ***" in err
    assert "tok-3f9a" not in out + err


def test_every_error_of_the_product_ends_in_one_line(run, monkeypatch):
    def broken(*_):
        raise StoreError("[x] " + "very long " * 30 + "end")

    monkeypatch.setattr(cli, "load_settings", broken)
    code, _, err = run("status")
    assert code == 1
    assert err == "error: [x] " + "very long " * 30 + "end\n"


def test_the_report_is_one_file_of_what_the_campaign_says(run, configured, tmp_path):
    configured.finished()
    file = tmp_path / "deep" / "board.html"
    code, out, _ = run("report", "--html", str(file))
    assert code == 0
    assert "board.html" in out
    page = file.read_text("utf-8")
    campaign = pipeline.open_campaign(configured.store, configured.settings)
    assert f">{int(campaign.accepted().sum()):,}</a>" in page
    assert "<script" not in page
    assert not list(file.parent.glob("*.part"))


def test_the_report_has_the_history_of_every_answer(run, configured, tmp_path):
    configured.finished()
    history = pipeline.open_history(configured.store, configured.settings)
    points = history.points(datetime.now(UTC))
    assert len(points) > 2
    assert points[-1].questions == int((history.campaign.verdict >= 0).sum())
    assert points[-1].accepted == int(history.campaign.accepted().sum())
    daemon = pipeline.open_daemon(configured.gateway, configured.store, configured.settings)
    assert daemon.history.points(datetime.now(UTC))[1:-1] == points[1:-1]


@pytest.fixture
def finished(configured, monkeypatch):
    """The office at the end of its campaign, as the command line finds it."""
    monkeypatch.setattr(pipeline, "open_gateway", lambda *_: nullcontext(configured.gateway))
    return configured.finished()


def states(office):
    campaign = pipeline.open_campaign(office.store, office.settings)
    return {campaign.cluster(*key): state for key, state in campaign.states().items()}


def test_a_cluster_is_undone_once(run, finished):
    name = next(name for name, state in states(finished).items() if state == "accepted")
    assert run("undo", name) == (0, f"Undone: {name}\n", "")
    assert states(finished)[name] == "undone"
    code, out, err = run("undo", name)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {name}: its decision is undone already")


def test_all_since_a_time_is_undone(run, finished):
    begin = min(at for _, at in finished.store.timed()).isoformat()
    now = datetime.now(UTC).isoformat()
    nothing = (0, "Nothing was decided or commanded since then that still stands.\n", "")
    assert run("undo", "--since", now) == nothing
    decided = [name for name, state in states(finished).items() if state in ("accepted", "rejected", "split")]
    said = Commanded(decided[0], "reject", "somebody", "now", "test")
    assert service.command(finished.settings, finished.store, finished.gateway, [said]) == [said]
    code, out, _ = run("undo", "--since", begin)
    assert code == 0
    undone = [line.removeprefix("Undone: ") for line in out.splitlines()]
    assert sorted(undone) == sorted([*decided, decided[0]])
    assert set(states(finished).values()) == {"undone"}
    assert run("undo", "--since", begin) == nothing


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name clusters or decisions to undo, or a time with --since"),
        (["x/1", "--since", "2026-01-01"], "name clusters or decisions to undo, or a time with --since"),
        (["x/9999"], "x/9999: this campaign has no such cluster"),
        (["page/none"], "page/none: this campaign has no such cluster, nor is anything written by a decision"),
        (["--since", "soon"], "--since soon is no time; write one like"),
        (["--since", "2999-01-01"], "--since 2999-01-01 is to come; here it is"),
    ],
)
def test_what_cannot_be_undone_is_one_line_and_exit_code_1(run, finished, arguments, said):
    before = states(finished)
    code, out, err = run("undo", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert states(finished) == before
    assert finished.store.hints() == []


def test_what_a_daemon_refuses_is_told_and_exit_code_1(run, finished, monkeypatch):
    name = next(name for name, state in states(finished).items() if state == "accepted")
    told = CommandRefused(name, "undo", "somebody", "now", "here", "another was quicker")
    monkeypatch.setattr(service, "command", lambda *_: [told])
    assert run("undo", name) == (1, f"Not undone: {name}: another was quicker\n", "")
    monkeypatch.setattr(service, "command", lambda *_: [])
    code, out, _ = run("undo", name)
    assert code == 0
    assert "as soon as it looks into its inbox" in out
