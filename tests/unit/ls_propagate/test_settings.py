"""Settings: the environment before the file, wrong ones refused by name, secrets never told."""

import json
import traceback
from pathlib import Path

import pytest

from ls_propagate.settings import load_settings, secrets_outside
from propagation.calibrated import CalibratedStrategy
from propagation.errors import SettingsError
from propagation.paper import PaperStrategy

TOKEN = "tok-3f9a"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def secrets(monkeypatch):
    """All secrets there are, in the environment."""
    names = (
        "LABEL_STUDIO_API_KEY",
        *(f"LS_PROPAGATE_{n}" for n in ("BACKEND_PASSWORD", "DAEMON_PASSWORD", "WEBHOOK_SECRET")),
    )
    for number, name in enumerate(names):
        monkeypatch.setenv(name, f"{TOKEN}-{number}")
    monkeypatch.setenv("LS_PROPAGATE_STORE", f"postgresql://me:{TOKEN}-4%2F@db/x")


def write(text, name="ls-propagate.toml"):
    Path(name).write_text(text)
    return Path(name)


def test_without_file_and_environment_the_defaults_hold():
    settings = load_settings()
    assert settings.label_studio_url == "http://localhost:8080"
    assert settings.strategy == CalibratedStrategy()
    assert settings.store_url == "sqlite:///.ls-propagate/store.sqlite"
    assert settings.backend_host == "127.0.0.1"
    assert (settings.daemon_host, settings.daemon_port) == ("127.0.0.1", 9091)
    assert settings.mirror_file == Path(".ls-propagate/events.jsonl")
    assert (settings.log_format, settings.log_level) == ("text", "warning")
    assert (settings.webhook_url, settings.webhook_secret, settings.daemon_password) == (None, None, None)
    assert settings.abandoned_minutes == 30
    assert settings.secrets == ()


def test_the_file_is_read_where_it_exists():
    write(
        """
        label_studio_url = "http://file"
        data_dir = "kept"
        image_hosts = ["images.example:8000"]
        [labels]
        nucleus = "Nucleus"
        [segmenter]
        name = "precomputed"
        predictions = "p.json"
        images = "i.json"
        [tree]
        linkage = "ward"
        weights = {score = 2.0, shape = 1}
        [strategy]
        name = "paper"
        samples = 30
        """
    )
    settings = load_settings()
    assert settings.label_studio_url == "http://file"
    assert settings.artefacts == Path("kept/artefacts")
    assert settings.image_hosts == ("images.example:8000",)
    assert settings.labels == {"nucleus": "Nucleus"}
    assert settings.segmenter.predictions == Path("p.json")
    assert settings.tree.weights == {"score": 2.0, "shape": 1.0}
    assert settings.strategy.samples == 30


def test_a_file_named_is_read_instead(folder):
    write("write_every = 7")
    assert load_settings(write("write_every = 8", "other.toml")).write_every == 8


def test_the_environment_beats_the_file_setting_by_setting(monkeypatch):
    write('label_studio_url = "http://file"\nwrite_every = 7\n[strategy]\nname = "paper"\nsamples = 3\nbudget = 9')
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://env")
    monkeypatch.setenv("LS_PROPAGATE_STRATEGY__BUDGET", "100")
    monkeypatch.setenv("LS_PROPAGATE_IMAGE_HOSTS", json.dumps(["a.example"]))
    settings = load_settings()
    assert settings.label_studio_url == "http://env"
    assert (settings.strategy.samples, settings.strategy.budget) == (3, 100)
    assert settings.write_every == 7
    assert settings.image_hosts == ("a.example",)


def test_what_is_given_beats_both(monkeypatch):
    write("write_every = 7")
    monkeypatch.setenv("LS_PROPAGATE_WRITE_EVERY", "8")
    assert load_settings(write_every=9).write_every == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense = 1", "setting nonsense: .*not permitted"),
        ("[strategy]\nsample = 3", r"setting strategy\.sample: not known"),
        ("[tree]\nlinkage = 'single'", r"setting tree\.linkage: .*complete"),
        ("[tree]\nweights = {score = -1}", r"setting tree\.weights\.score: .*greater than or equal to 0"),
        ("[segmenter]\nname = 'magic'", "setting segmenter: .*precomputed.*watershed"),
        ("[segmenter]\nname = 'watershed'", r"setting segmenter\.watershed\.seed: Field required"),
        ("strategy = 3", "setting strategy: "),
        ("write_every = 0", "setting write_every: .*greater than or equal to 1"),
        ("poll_seconds = 0", "setting poll_seconds: "),
        ("write_every = 'often'", "setting write_every: .*integer"),
        ("backend_port = 70000", "setting backend_port: "),
        ("daemon_port = -1", "setting daemon_port: "),
        ("abandoned_minutes = 0", "setting abandoned_minutes: .*greater than 0"),
        ("log_format = 'xml'", "setting log_format: .*'text' or 'json'"),
        ("log_level = 'loud'", "setting log_level: .*'debug', 'info', 'warning' or 'error'"),
        ("webhook_url = 'localhost:9091'", "setting webhook_url: it is no address; write it as http"),
        ("webhook_url = 'http://h:x'", "setting webhook_url: it is no address"),
        ("webhook_url = 'http://[::1'", "setting webhook_url: it is no address"),
        ("webhook_url = 'http://me:pa55@host'", "setting webhook_url: it holds a name, a password or a query"),
        ("webhook_url = 'http://host/?key=pa55'", "setting webhook_url: it holds a name, a password or a query"),
        ("label_studio_url = 'http://me:pa55@host'", "setting label_studio_url: it holds a name, a password"),
        ("store = 'nonsense'", "setting store: it is no SQLAlchemy URL"),
        ("[strategy]\npage_size = 21", r"setting strategy\.page_size: .*20"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_place(text, said):
    write(text)
    with pytest.raises(
        SettingsError, match=rf"{said}.*; correct it in ls-propagate\.toml or in the environment"
    ) as caught:
        load_settings()
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LS_PROPAGATE_STRATEGY__BUDGE", "7", r"setting strategy\.budge: "),
        ("LS_PROPAGATE_STRATEGY__BUDGET", "many", r"setting strategy\.budget: .*integer"),
        ("LS_PROPAGATE_IMAGE_HOSTS", "a.example", "image_hosts.*as JSON in the environment"),
        ("LS_PROPAGATE_STRATEGY", "random", r"setting strategy\.name: no strategy 'random'; .* calibrated, paper"),
    ],
)
def test_a_wrong_value_in_the_environment_is_refused_by_name(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_a_strategy_out_of_range_is_refused_when_it_is_built():
    write('[strategy]\nname = "paper"\naccept_at = 3')
    with pytest.raises(SettingsError, match=r"strategy\.accept_at is 3"):
        load_settings()


@pytest.mark.parametrize(
    "name",
    [
        "label_studio_api_key",
        "LABEL_STUDIO_API_KEY",
        "backend_password",
        "daemon_password",
        "webhook_secret",
        "LS_PROPAGATE_WEBHOOK_SECRET",
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_told(name):
    write(f'{name} = "{TOKEN}"')
    with pytest.raises(SettingsError, match=rf"{name}; take it out and set it in the environment") as caught:
        load_settings()
    assert TOKEN not in str(caught.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match=r"no settings file nowhere\.toml; correct --config"):
        load_settings(Path("nowhere.toml"))


@pytest.mark.parametrize("content", [b"a = ", b"= 3", b"\xff\xfe", b"[a\n"])
def test_a_file_that_is_not_toml_is_named(content):
    Path("bad.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"bad\.toml is not TOML \(.*\); correct it"):
        load_settings(Path("bad.toml"))


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_token_says_where_to_get_one(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", value)
    with pytest.raises(SettingsError, match=r"personal access token .* LABEL_STUDIO_API_KEY"):
        _ = load_settings().token


def test_secrets_are_kept_out_of_all_that_is_printed(secrets):
    settings = load_settings()
    assert settings.token == f"{TOKEN}-0"
    assert settings.backend_password.get_secret_value() == f"{TOKEN}-1"
    assert settings.daemon_password.get_secret_value() == f"{TOKEN}-2"
    assert settings.webhook_secret.get_secret_value() == f"{TOKEN}-3"
    assert settings.store_url == f"postgresql://me:{TOKEN}-4%2F@db/x"
    assert set(settings.secrets) == set(secrets_outside()) == {f"{TOKEN}-{n}" for n in range(4)} | {f"{TOKEN}-4/"}
    for told in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert TOKEN not in told


def everything(error):
    """All that a trace of an error would print."""
    return "".join(traceback.format_exception(error, chain=True))


@pytest.mark.parametrize(
    "text",
    [
        "nonsense = 1",
        "poll_seconds = 'x'",
        "[strategy]\nnonsense = 1",
        "[segmenter]\nname = 'magic'",
        "log_format = 1",
        "webhook_url = 7",
        "image_hosts = 3",
    ],
)
def test_a_wrong_setting_beside_secrets_does_not_tell_them_even_in_a_trace(secrets, text):
    write(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert TOKEN not in everything(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "LABEL_STUDIO_API_KEY__X",
        "LS_PROPAGATE_DAEMON_PASSWORD__X",
        "LS_PROPAGATE_WEBHOOK_SECRET__X",
        "LS_PROPAGATE_STORE__X",
        "LS_PROPAGATE_STORE",
        "LS_PROPAGATE_IMAGE_HOSTS",
        "LS_PROPAGATE_STRATEGY__BUDGET",
        "LS_PROPAGATE_LOG_LEVEL",
        "LS_PROPAGATE_WEBHOOK_URL",
    ],
)
def test_a_secret_in_the_wrong_place_of_the_environment_is_not_told(monkeypatch, name):
    monkeypatch.setenv(name, f"nobody:{TOKEN}@nowhere")
    try:
        load_settings()
    except SettingsError as error:
        told = everything(error)
    else:
        told = ""
    assert TOKEN not in told


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{TOKEN}@db.example/campaign",
        f"postgresql://me@db.example/campaign?password={TOKEN}",
        f"postgresql://me@db.example/campaign?sslpassword={TOKEN}",
        f"postgresql://me:{TOKEN}/x@db.example/campaign",
        f"postgresql://me:{TOKEN}@db.example:port/campaign",
    ],
)
def test_a_store_whose_url_holds_a_password_is_refused_in_the_file_and_not_told(url):
    write(f"store = {json.dumps(url)}")
    with pytest.raises(SettingsError, match=r"LS_PROPAGATE_STORE|no SQLAlchemy URL") as caught:
        load_settings()
    assert TOKEN not in everything(caught.value)


@pytest.mark.parametrize("url", ["postgresql://me@db.example/campaign", "sqlite:///other.sqlite"])
def test_a_store_without_a_password_may_be_in_the_file(url):
    write(f"store = {json.dumps(url)}")
    assert load_settings().store_url == url
    assert load_settings().secrets == ()


def test_secrets_in_the_environment_are_known_though_the_settings_are_wrong(secrets, monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_STORE", f"nonsense with {TOKEN}")
    write("nonsense = 1")
    assert f"nonsense with {TOKEN}" in secrets_outside()
    assert f"{TOKEN}-3" in secrets_outside()


@pytest.mark.parametrize(
    "name", ["LS_PROPAGATE_DAEMON_PASSWORD", "LS_PROPAGATE_WEBHOOK_SECRET", "LS_PROPAGATE_BACKEND_PASSWORD"]
)
def test_an_empty_secret_is_none(monkeypatch, name):
    monkeypatch.setenv(name, "")
    assert getattr(load_settings(), name.removeprefix("LS_PROPAGATE_").lower()) is None


def test_an_address_loses_the_slash_at_its_end():
    settings = load_settings(webhook_url="https://h.example:9091/x/", label_studio_url="http://ls/")
    assert (settings.webhook_url, settings.label_studio_url) == ("https://h.example:9091/x", "http://ls")


def test_the_mirror_may_be_elsewhere():
    write('mirror = "kept/log.jsonl"')
    assert load_settings().mirror_file == Path("kept/log.jsonl")


def test_a_strategy_may_be_named_alone(monkeypatch):
    monkeypatch.setenv("LS_PROPAGATE_STRATEGY", "paper")
    assert load_settings().strategy == PaperStrategy()


def test_a_strategy_refuses_what_belongs_to_another():
    write("[strategy]\nsamples = 3")
    with pytest.raises(SettingsError, match=r"strategy\.samples: not known to 'calibrated'"):
        load_settings()
