"""Where things are: below the results folder, or where its `places.yaml` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from workbench.settings import ConfigError, from_dict
from workbench.store import Store, open_store
from workbench.strict_yaml import read_yaml

DEFAULT_ROOT = Path("mlruns")
FILE = "places.yaml"


@dataclass(frozen=True, kw_only=True)
class PlacesFile:
    """`places.yaml`: what does not lie below the results folder. None: it does."""

    # Folders are meant from the results folder, where they are relative.
    store: str | None = None  # a folder that every node sees, or an fsspec URL
    data: str | None = None  # a folder, on every node
    optuna: str | None = None  # an SQLAlchemy URL, such as postgresql+psycopg://host/optuna
    mlflow: str | None = None  # a tracking URI, such as http://127.0.0.1:5000

    def __post_init__(self) -> None:
        for name, remedy in (
            ("store", "by the file system's own configuration"),
            ("optuna", "in ~/.pgpass or PGPASSWORD"),
            ("mlflow", "in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ):
            if _holds_a_password(getattr(self, name) or ""):
                raise ConfigError(
                    name, f"holds a password, which results may be copied with; give it {remedy}"
                )
        if self.optuna is not None:
            _refuse_unusable(self.optuna)
        if _is_url(self.data or ""):
            raise ConfigError("data", f"must be a folder, is {self.data!r}; prepared sets may lie at URLs")
        if not (self.mlflow or "sqlite:").startswith(("http://", "https://", "sqlite:")):
            raise ConfigError(
                "mlflow", f"must be a tracking server's address (http, https), or sqlite, is {self.mlflow!r}"
            )


def _holds_a_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL; what uses it says so
        return False
    return parts.password is not None or "password" in parse_qs(parts.query)


def _refuse_unusable(optuna_url: str) -> None:
    import sqlalchemy  # most results have no need of it here
    from sqlalchemy.exc import ArgumentError

    try:
        sqlalchemy.make_url(optuna_url).get_dialect().import_dbapi()
    except ImportError as error:
        remedy = "python -m pip install 'psycopg[binary]'" if "psycopg" in optuna_url else "install it"
        what = f"needs the package {error.name}" if error.name else f"cannot be opened ({error})"
        raise ConfigError("optuna", f"{optuna_url} {what}: {remedy}") from None
    except (ArgumentError, ValueError) as error:
        raise ConfigError("optuna", f"must be an SQLAlchemy URL, is {optuna_url!r} ({error})") from None


def _is_url(location: str) -> bool:
    return "://" in location


@dataclass(frozen=True)
class Places:
    """Where things are; `read` makes it from a results folder."""

    root: Path
    store_location: str
    data: Path
    optuna_url: str
    mlflow_uri: str

    @classmethod
    def read(cls, root: Path) -> Places:
        """Of the results in `root`. Raises ConfigError for a `places.yaml` that cannot be used."""
        path = root / FILE
        try:
            file = from_dict(PlacesFile, read_yaml(path)) if path.exists() else PlacesFile()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.path}" if error.path else str(path), error.message) from None
        here = root.resolve()
        store = file.store or "store"
        return cls(
            root=root,
            store_location=store if _is_url(store) else str(here / Path(store).expanduser()),
            data=here / Path(file.data).expanduser() if file.data else root / "data",
            optuna_url=file.optuna or f"sqlite:///{here / 'optuna.db'}",
            mlflow_uri=file.mlflow or f"sqlite:///{here / 'mlflow.db'}",
        )

    def store(self, report: Callable[[str], None] = print) -> Store:
        return open_store(self.store_location, report)

    def study(self, study_id: str) -> Path:
        return self.root / "studies" / study_id
