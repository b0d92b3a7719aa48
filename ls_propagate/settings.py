"""Settings, from the environment and a TOML file; secrets from the environment alone."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as Unparsable
from sqlalchemy.exc import ArgumentError

from plugin.label_studio.pages import KEYS, Ask
from propagation.calibrated import CalibratedStrategy
from propagation.errors import SettingsError
from propagation.paper import PaperStrategy
from propagation.progress import DRAWING_SECONDS, Terms
from propagation.strategies import Strategy as AnyStrategy
from propagation.tree import EXACT_BELOW

FILE = Path("ls-propagate.toml")
Engine = Literal["local", "ray"]
SECRETS = ("label_studio_api_key", "backend_password", "daemon_password", "webhook_secret")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrecomputedSettings(_Strict):
    """Masks found earlier by any model: COCO results, the COCO file with its images, optional features.

    read_images: whether each image is read, so that one that is broken, or of another size, is found at once.
    """

    name: Literal["precomputed"] = "precomputed"
    predictions: Path
    images: Path
    features: Path | None = None
    read_images: bool = True


class WatershedSettings(_Strict):
    """Classical segmentation with a classifier trained on a small annotated set.

    seed: a folder with images/ and ground_truth.json (COCO).
    """

    name: Literal["watershed"] = "watershed"
    seed: Path


class UNetSettings(_Strict):
    """A network that ``ls-propagate train`` trains, on what people annotated and what the campaign accepted.

    seed: a folder with images/ and ground_truth.json (COCO) to train on as well. minutes: that training takes at
    most, on the machine that it runs on.
    """

    name: Literal["unet"] = "unet"
    seed: Path | None = None
    minutes: Annotated[float, Field(gt=0)] = 10.0


class _DetectorSettings(_Strict):
    """What detectors have in common.

    classes: the names of the model's classes, in its order, where it does not tell them. categories: those of them
    that are taken; without it, all. least_score: of the class, from which a mask is taken. most: masks an image.
    features: what masks are clustered by: the paper's mask attention, or the box head's features. device: as torch
    names it.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    categories: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    least_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    most: Annotated[int, Field(ge=1)] = 100
    features: Literal["attention", "box", "none"] = "attention"
    device: str = "auto"


class Detectron2Settings(_DetectorSettings):
    """A model of detectron2, of its model zoo or your own.

    config: a file, or a name of the model zoo. weights: a file or address; without it, the model zoo's.
    imports: modules that register what the config names.
    """

    name: Literal["detectron2"] = "detectron2"
    config: str
    weights: str | None = None
    imports: tuple[str, ...] = ()


class TorchvisionSettings(_DetectorSettings):
    """torchvision's Mask R-CNN. weights: torchvision's by their name, or a .pth file; that needs classes."""

    name: Literal["torchvision"] = "torchvision"
    model: Literal["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"] = "maskrcnn_resnet50_fpn_v2"
    weights: str = "COCO_V1"


AnySegmenter = PrecomputedSettings | WatershedSettings | UNetSettings | Detectron2Settings | TorchvisionSettings


class TreeSettings(_Strict):
    """How masks are clustered: joining rule, and the weight of each feature block; without weights, 1 each.

    exact_below: categories with as many masks or more are joined by way of micro-clusters.
    """

    linkage: Literal["complete", "ward"] = "complete"
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    exact_below: Annotated[int, Field(ge=2)] = EXACT_BELOW


STRATEGIES: dict[str, type[PaperStrategy] | type[CalibratedStrategy]] = {
    "calibrated": CalibratedStrategy,
    "paper": PaperStrategy,
}


def _known_names(given: Any) -> Any:
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        return given
    chosen = given.get("name", "calibrated")
    if chosen not in STRATEGIES:
        raise SettingsError(f"setting strategy.name: no strategy {chosen!r}; there are {', '.join(STRATEGIES)}")
    known = {field.name for field in fields(STRATEGIES[chosen])}
    for name in given:
        if name not in known:
            raise SettingsError(
                f"setting strategy.{name}: not known to {chosen!r}; there are {', '.join(sorted(known))}"
            )
    return {**given, "name": chosen}


def _fits_a_page(strategy: AnyStrategy) -> AnyStrategy:
    if strategy.page_size > len(KEYS):
        raise SettingsError(
            f"setting strategy.page_size: {strategy.page_size} is more than a page takes, {len(KEYS)}"
        )
    return strategy


Strategy = Annotated[
    Annotated[PaperStrategy | CalibratedStrategy, Field(discriminator="name")],
    BeforeValidator(_known_names),
    AfterValidator(_fits_a_page),
]


def store_password(url: str) -> str | None:
    """The password in a store's SQLAlchemy URL, before its host or in its query; None without one.

    Raises SettingsError, which doesn't show the URL, for one that cannot be read.
    """
    try:
        address = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "setting store: it is no SQLAlchemy URL; write it as dialect+driver://user:password@host/database, "
            "with a password's special characters percent-encoded"
        ) from None
    query = next((value for name, value in address.query.items() if "password" in name.lower()), None)
    return str(address.password or query or "") or None


def _readable(url: SecretStr) -> SecretStr:
    store_password(url.get_secret_value())
    return url


def _address(setting: str) -> AfterValidator:
    """An http(s) address without credentials, and without the slash at its end."""

    def checked(url: str) -> str:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(f"setting {setting}: it is no address; write it as http://host:port")
        if parts.username is not None or parts.query:
            raise SettingsError(f"setting {setting}: it holds a name, a password or a query; take that out")
        return url.rstrip("/")

    return AfterValidator(checked)


class Settings(BaseSettings):
    """Every setting of the product.

    From the environment: LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY, LS_PROPAGATE_BACKEND_PASSWORD,
    LS_PROPAGATE_DAEMON_PASSWORD, LS_PROPAGATE_WEBHOOK_SECRET, and any other as LS_PROPAGATE_NAME (nested ones
    with two underscores). From the TOML file: all but the secrets.
    """

    model_config = SettingsConfigDict(
        env_prefix="LS_PROPAGATE_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    label_studio_url: Annotated[str, _address("label_studio_url")] = Field(
        default="http://localhost:8080", validation_alias="LABEL_STUDIO_URL"
    )
    label_studio_api_key: SecretStr | None = Field(default=None, validation_alias="LABEL_STUDIO_API_KEY")
    data_dir: Path = Path(".ls-propagate")
    store: Annotated[SecretStr, AfterValidator(_readable)] | None = None
    mirror: Path | None = None
    image_hosts: tuple[str, ...] = ()
    segmenter: Annotated[AnySegmenter, Field(discriminator="name")] | None = None
    labels: dict[str, str] = {}
    tree: TreeSettings = TreeSettings()
    strategy: Strategy = CalibratedStrategy()
    ask: Ask = "page"
    gold_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    tolerated_miss: Annotated[float, Field(gt=0, lt=1)] = 0.25
    least_seconds: Annotated[float, Field(ge=0)] = 0.2
    overlap: Annotated[float, Field(ge=0, le=1)] = 0.02
    write_every: Annotated[int, Field(ge=1)] = 20_000
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    abandoned_minutes: Annotated[float, Field(gt=0)] = 30.0
    daemon_host: str = "127.0.0.1"
    daemon_port: Annotated[int, Field(ge=0, le=65535)] = 9091
    daemon_password: SecretStr | None = None
    webhook_url: Annotated[str, _address("webhook_url")] | None = None
    webhook_secret: SecretStr | None = None
    drawing_seconds: Annotated[float, Field(gt=0)] = DRAWING_SECONDS
    hour_cost: Annotated[float, Field(ge=0)] | None = None
    currency: Annotated[str, Field(max_length=8)] = ""
    masks_wanted: Annotated[int, Field(ge=1)] | None = None
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    engine: Engine = "local"
    workers: Annotated[int, Field(ge=1)] | None = None
    backend_host: str = "127.0.0.1"
    backend_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    backend_password: SecretStr | None = None

    @property
    def store_url(self) -> str:
        """The store's SQLAlchemy URL, its password included."""
        return self.store.get_secret_value() if self.store else f"sqlite:///{self.data_dir / 'store.sqlite'}"

    @property
    def mirror_file(self) -> Path:
        """The file that the event log is mirrored to."""
        return self.mirror or self.data_dir / "events.jsonl"

    @property
    def artefacts(self) -> Path:
        """The folder of mask tables and trees."""
        return self.data_dir / "artefacts"

    @property
    def terms(self) -> Terms:
        """What the progress board compares with."""
        return Terms(self.drawing_seconds, self.hour_cost, self.currency, self.masks_wanted)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown."""
        held = (getattr(self, name) for name in SECRETS)
        return *(secret.get_secret_value() for secret in held if secret), *_passwords(self.store_url)

    @property
    def token(self) -> str:
        """The token for Label Studio. Raises SettingsError when there is none."""
        if not self.label_studio_api_key:
            raise SettingsError(
                "no token for Label Studio; make a personal access token on its Account & Settings page and set "
                "the environment variable LABEL_STUDIO_API_KEY to it"
            )
        return self.label_studio_api_key.get_secret_value()


def secrets_outside() -> tuple[str, ...]:
    """The secrets in the environment, whether or not the settings can be loaded."""
    given = {name.lower().removeprefix("ls_propagate_"): value for name, value in os.environ.items()}
    return *(given[name] for name in SECRETS if given.get(name)), *_passwords(given.get("store", ""))


def _passwords(store_url: str) -> tuple[str, ...]:
    """The password in a store's URL; all of a URL that cannot be read."""
    try:
        password = store_password(store_url) if store_url else None
    except SettingsError:
        return (store_url,)
    return (password,) if password else ()


def load_settings(file: Path | None = None, **given: Any) -> Settings:
    """The settings from the environment and a TOML file (``ls-propagate.toml`` where it exists).

    given: settings that win over both. Raises SettingsError naming the setting and its source.
    """
    if file is not None and not file.is_file():
        raise SettingsError(f"there is no settings file {file}; correct --config, or make the file")
    path = file or FILE
    try:
        content = tomllib.loads(path.read_text()) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML ({error}); correct it") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); let this account read it") from error
    for name in content:
        if name.lower().removeprefix("ls_propagate_") in SECRETS:
            raise SettingsError(f"{path} holds the secret {name}; take it out and set it in the environment")
    store = content.get("store")
    if isinstance(store, str) and _passwords(store) not in ((), (store,)):
        raise SettingsError(
            f"{path} holds the store's password; take store out and set LS_PROPAGATE_STORE in the environment"
        )

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    where = f"correct it in {path} or in the environment"
    try:
        return FromFile(**given)
    except SettingsError as error:
        raise SettingsError(f"{error}; {where}") from error
    except Unparsable as error:
        raise SettingsError(f"{error}; lists and tables are written as JSON in the environment") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # a strategy's name stands in the place as well
        name = ".".join(str(part) for part in first["loc"] if part not in STRATEGIES)
        # the cause would show what was given
        raise SettingsError(f"setting {name}: {first['msg']}; {where}") from None
