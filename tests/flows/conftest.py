"""A real Prefect server for flows that tests call in their own process."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory) -> Iterator[str]:
    """Address of a temporary server with a home of its own; flows of this process talk to it."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

    from flows import prefect_api

    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith(("PREFECT_", "MLFLOW_", "INGOT_"))]:
            patch.delenv(name)
        for name, value in {
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "OMP_NUM_THREADS": "1",
            "PREFECT_API_URL": "",
        }.items():
            patch.setenv(name, value)
        with prefect_api.api(home / "logs") as ready:
            ready()
            url = os.environ["PREFECT_API_URL"]
            settings = {PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_LOGGING_TO_API_ENABLED: False}
            with temporary_settings(settings):
                yield url
                EventsWorker.drain_all(at_exit=False)
