"""The packaged model: it answers prompts and messages, refuses what is none, and a broken one is not let through."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings

import models
import pandas as pd
import pytest

from deploy import mlflow_package
from model.errors import CheckpointError, InputError
from tasks.mlflow_client import connect

ASK = [{"role": "user", "content": "What is a lighthouse?"}]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    connect("sqlite:///:memory:")
    folder = tmp_path_factory.mktemp("package")
    models.weights(folder / "model", seed=1)
    mlflow_package.save(folder / "model", folder / "package", "f" * 64)
    return folder / "package"


@pytest.fixture(scope="module")
def loaded(package):
    import mlflow

    before = list(sys.path)
    yield mlflow.pyfunc.load_model(str(package))
    sys.path[:] = before


def test_a_prompt_and_the_same_as_messages_get_the_same_answer(loaded):
    by_prompt = loaded.predict(pd.DataFrame([{"prompt": ASK[0]["content"]}]), params={"max_new": 8})
    by_messages = loaded.predict(pd.DataFrame([{"messages": ASK}]), params={"max_new": 8})
    assert list(by_prompt.columns) == ["answer", "finished"] and by_prompt.equals(by_messages)
    assert by_prompt["finished"][0] in ("stop", "length")


def test_rows_are_answered_in_order_and_as_if_alone(loaded):
    prompts = [f"lamp {n} " * (n + 1) for n in range(5)]
    together = loaded.predict(pd.DataFrame({"prompt": prompts}), params={"max_new": 6})
    alone = [loaded.predict(pd.DataFrame({"prompt": [p]}), params={"max_new": 6})["answer"][0] for p in prompts]
    assert list(together["answer"]) == alone


def test_a_seed_decides_what_is_sampled(loaded):
    rows = pd.DataFrame({"prompt": ["lamp"] * 3})
    said = [list(loaded.predict(rows, params={"max_new": 12, "temperature": 1.0, "seed": s})["answer"]) for s in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("row", [{"prompt": ""}, {"prompt": None}, {"messages": []}])
def test_a_row_without_a_prompt_is_named(loaded, row):
    with pytest.raises(InputError, match="row 0: prompt is"):
        loaded.predict(pd.DataFrame([row]))


def test_nothing_is_said_while_packaging_and_proving(package, tmp_path, capfd):
    models.weights(tmp_path / "model", seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mlflow_package.save(tmp_path / "model", tmp_path / "package", "f" * 64)
        mlflow_package.prove(tmp_path / "package")
    assert capfd.readouterr() == ("", "")


def test_the_package_ships_our_model_code_and_leaves_the_path_as_it_was(package):
    before = list(sys.path)
    mlflow_package.prove(package)
    assert sys.path == before and (package / "code" / "model" / "transformer.py").exists()


def test_a_package_with_damaged_weights_is_refused(tmp_path):
    models.weights(tmp_path / "model", seed=1)
    mlflow_package.save(tmp_path / "model", tmp_path / "package", "f" * 64)
    (tmp_path / "package" / "artifacts" / "model" / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        mlflow_package.prove(tmp_path / "package")


def test_a_package_that_cannot_run_is_refused_with_the_reason(tmp_path):
    models.weights(tmp_path / "model", seed=1)
    mlflow_package.save(tmp_path / "model", tmp_path / "package", "f" * 64)
    code = tmp_path / "package" / "mlflow_model.py"
    code.write_text(code.read_text().replace("def predict(", "def predict_(", 1))
    with pytest.raises(CheckpointError, match=r"does not answer as an MLflow model .* Nothing is registered"):
        mlflow_package.prove(tmp_path / "package")


def invoke(port, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


@pytest.mark.full
def test_mlflow_serves_the_package_from_another_folder(package, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", str(package), "-p", str(port), "-w", "1"]
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # mlflow starts uvicorn by its name
    env = os.environ | {"PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "serve.log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                by_prompt = invoke(port, {"inputs": [{"prompt": ASK[0]["content"]}], "params": {"max_new": 8}})
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None, (tmp_path / "serve.log").read_text()
                time.sleep(0.5)
        by_messages = invoke(port, {"inputs": [{"messages": ASK}], "params": {"max_new": 8}})
        assert by_prompt == by_messages and by_prompt["predictions"][0].keys() == {"answer", "finished"}
        with pytest.raises(urllib.error.HTTPError) as refused:
            invoke(port, {"inputs": [{"prompt": ""}]})
        assert refused.value.code in (400, 500)
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, number)
                server.wait(10)
