"""Settings, from the environment and a TOML file; secrets from the environment alone."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as Unparsable

from plugin.label_studio.pages import KEYS
from propagation.calibrated import CalibratedStrategy
from propagation.errors import SettingsError
from propagation.paper import PaperStrategy
from propagation.strategies import Strategy as AnyStrategy
from propagation.tree import EXACT_BELOW

FILE = Path("ls-propagate.toml")
SECRETS = ("label_studio_api_key", "backend_password")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrecomputedSettings(_Strict):
    """Masks found earlier by any model: COCO results, the COCO file with its images, optional features."""

    name: Literal["precomputed"] = "precomputed"
    predictions: Path
    images: Path
    features: Path | None = None


class WatershedSettings(_Strict):
    """Classical segmentation with a classifier trained on a small annotated set.

    seed: a folder with images/ and ground_truth.json (COCO).
    """

    name: Literal["watershed"] = "watershed"
    seed: Path


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


class Settings(BaseSettings):
    """Every setting of the product.

    From the environment: LABEL_STUDIO_URL, LABEL_STUDIO_API_KEY, LS_PROPAGATE_BACKEND_PASSWORD, and any
    other as LS_PROPAGATE_NAME (nested ones with two underscores). From the TOML file: all but the secrets.
    """

    model_config = SettingsConfigDict(
        env_prefix="LS_PROPAGATE_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    label_studio_url: str = Field(default="http://localhost:8080", validation_alias="LABEL_STUDIO_URL")
    label_studio_api_key: SecretStr | None = Field(default=None, validation_alias="LABEL_STUDIO_API_KEY")
    data_dir: Path = Path(".ls-propagate")
    store: str | None = None
    image_hosts: tuple[str, ...] = ()
    segmenter: Annotated[PrecomputedSettings | WatershedSettings, Field(discriminator="name")] | None = None
    labels: dict[str, str] = {}
    tree: TreeSettings = TreeSettings()
    strategy: Strategy = CalibratedStrategy()
    write_every: Annotated[int, Field(ge=1)] = 20_000
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    backend_host: str = "127.0.0.1"
    backend_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    backend_password: SecretStr | None = None

    @property
    def store_url(self) -> str:
        """The store's SQLAlchemy URL."""
        return self.store or f"sqlite:///{self.data_dir / 'store.sqlite'}"

    @property
    def artefacts(self) -> Path:
        """The folder of mask tables and trees."""
        return self.data_dir / "artefacts"

    @property
    def token(self) -> str:
        """The token for Label Studio. Raises SettingsError when there is none."""
        if not self.label_studio_api_key:
            raise SettingsError(
                "no token for Label Studio; make a personal access token on its Account & Settings page and set "
                "the environment variable LABEL_STUDIO_API_KEY to it"
            )
        return self.label_studio_api_key.get_secret_value()


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
    for name in content:
        if name.lower() in SECRETS:
            raise SettingsError(f"{path} holds the secret {name}; take it out and set it in the environment")

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
        raise SettingsError(f"{error}; lists and tables are written as JSON in the environment") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # a strategy's name stands in the place as well
        name = ".".join(str(part) for part in first["loc"] if part not in STRATEGIES)
        raise SettingsError(f"setting {name}: {first['msg']}; {where}") from error
