"""The way to MLflow: a client of an address, quiet and quick to give up, and its errors as ours."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.errors import ServiceError, StoreError
from tasks import databases

LOST = ("Max retries exceeded", "failed with exception", "Connection refused", "too many 5", "TEMPORARILY_UNAVAILABLE")
"""What MLflow's errors say when the other side is away."""


def connect(uri: str) -> Any:
    """An MLflow client of an address, quiet, without telemetry, with time-outs that end within seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        place = Path(uri.removeprefix("sqlite:///"))
        place.parent.mkdir(parents=True, exist_ok=True)
        databases.begin(place)
    return mlflow.MlflowClient(uri, uri)


def is_lost(error: Exception) -> bool:
    """Whether an error of an MLflow call means that the other side is away, and not that it refused."""
    from mlflow.exceptions import MlflowException

    return not isinstance(error, MlflowException) or any(sign in str(error) for sign in LOST)


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn a lost MLflow into a ServiceError that names its address, and a refusal into a StoreError."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (requests.RequestException, ConnectionError, MlflowException) as error:
        if is_lost(error):
            advice = "Start it (`make up`), or unset MLFLOW_TRACKING_URI and register.tracking_uri to keep a file in the store."
            raise ServiceError(f"MLflow at {uri} does not answer ({type(error).__name__}). {advice}") from error
        raise StoreError(f"MLflow at {uri} refused a request: {error}") from error


@contextlib.contextmanager
def global_address(uri: str) -> Iterator[None]:
    """MLflow's process-wide address for the time of a block. set_tracking_uri also writes os.environ, where the next store would find it."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before
