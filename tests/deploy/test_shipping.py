"""What ships in deploy/: each file passes its own validator; and the services keep their records in a real PostgreSQL, which may be lost."""

import asyncio
import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chain import REPO
from services import free_port, started

BIN = Path(sys.executable).parent
DEPLOY = REPO / "deploy"


def checked(*command: str | Path) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_dockerfile_has_two_targets_and_nothing_to_object_to():
    checked(BIN / "hadolint", DEPLOY / "Dockerfile")
    assert {"cpu", "gpu"} <= set(re.findall(r"^FROM \S+ AS (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.M))
    checked("bash", "-n", DEPLOY / "install.sh")


def test_compose_follows_its_schema_and_publishes_on_loopback_only():
    checked(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "prefect", "mlflow", "worker", "serve"}
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", ()))
    assert all(set(service.get("depends_on", ())) <= set(services) for service in services.values())


def test_kubernetes_manifests_follow_its_schemas_and_name_what_is_there():
    checked(BIN / "kubernetes-validate", "--strict", "--quiet", DEPLOY / "k8s" / "ingot.yaml")
    found = list(yaml.safe_load_all((DEPLOY / "k8s" / "ingot.yaml").read_text()))
    apps = {one["spec"]["selector"]["app"] for one in found if one["kind"] == "Service"}
    assert apps <= {one["metadata"]["name"] for one in found if one["kind"] in ("Deployment", "StatefulSet")}
    claims = {one["metadata"]["name"] for one in found if one["kind"] == "PersistentVolumeClaim"}
    assert set(re.findall(r"claimName: (\S+?)}", (DEPLOY / "k8s" / "ingot.yaml").read_text())) == claims


def test_a_flow_run_of_the_kubernetes_pool_is_a_job_with_store_image_and_gpus(tmp_path):
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    template = json.loads((DEPLOY / "k8s" / "work-pool.json").read_text())
    made = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(template, {"gpus": 2, "image": "ingot:gpu", "name": "demo"})
    )
    job = made.job_manifest
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["resources"]["limits"]["nvidia.com/gpu"]) == ("ingot:gpu", 2)
    assert made.env["INGOT_STORE"] == "/store" and {"name": "store", "mountPath": "/store"} in container["volumeMounts"]
    container["env"], container["args"] = (
        [{"name": name, "value": value} for name, value in made.env.items()],
        ["prefect", "flow-run", "execute"],
    )
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    checked(BIN / "kubernetes-validate", "--strict", "--quiet", path)


def test_a_ray_cluster_of_these_machines_is_what_ray_understands():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((DEPLOY / "ray" / "cluster.yaml").read_text())))


def test_the_slurm_script_starts_torchrun_on_every_node(tmp_path):
    """Slurm's commands are stood in for by scripts that print: tests/tasks/test_clusters.py has the real ones."""
    for name, text in {"scontrol": 'echo "$2" | tr , "\\n"', "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{'shift; ' if name == 'scontrol' else ''}{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "n1,n2",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "77",
    }
    script = str(DEPLOY / "slurm" / "train.sbatch")
    words = subprocess.run(["bash", script, "store/run.json"], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert words[1:] == [
        ".venv/bin/torchrun", "--nnodes", "2", "--nproc-per-node", "8", "--rdzv-backend", "c10d", "--rdzv-endpoint", "n1:29400", "--rdzv-id", "77",
        "-m", "model.train", "store/run.json",
    ]  # fmt: skip
    lacking = subprocess.run(["bash", script], env=env, capture_output=True, text=True)
    assert lacking.returncode and "usage: sbatch" in lacking.stderr


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Address (without a database's name) of a PostgreSQL of its own; skipped where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("PostgreSQL is not installed here: apt-get install postgresql")
    if os.getuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    tools, port = found[-1].parent, free_port()
    folder = Path(tempfile.mkdtemp(prefix="ingot-postgres-"))  # pytest's own is closed to other users
    data = folder / "data"
    if user:
        shutil.chown(folder, "postgres", "postgres")
    checked(*user, tools / "initdb", "-D", data, "-U", "ingot", "--auth=trust", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    checked(*user, tools / "pg_ctl", "-D", data, "-w", "-o", options, "-l", data / "log", "start")
    try:
        yield f"ingot@127.0.0.1:{port}"
    finally:
        checked(*user, tools / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


def asked(address: str, database: str, *statements: str) -> list[tuple]:
    """Rows of the last of some statements."""
    import psycopg2

    connection = psycopg2.connect(f"postgresql://{address}/{database}")
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.full
def test_services_keep_their_records_in_postgresql_and_when_it_is_lost_the_store_brings_the_registry_back(tmp_path):
    with postgresql() as address:
        variables = {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}/prefect",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{address}/mlflow",
        }
        registered = "select v.name, v.version, t.value from model_versions v join model_version_tags t using (name, version) where key = 'ingot.fingerprint'"
        seen = []
        for _ in range(2):
            asked(address, "postgres", "drop database if exists prefect", "drop database if exists mlflow")
            asked(address, "postgres", "create database prefect", "create database mlflow")
            with started(tmp_path, **variables) as services:
                done = services.shell("ingot run tiny && ingot models", timeout=600)
                assert done.returncode == 0, done.stdout + done.stderr
                runs = asked(address, "prefect", "select count(*) from flow_run where state_name = 'Completed'")
                seen.append((asked(address, "mlflow", registered), runs, done.stdout))
        (first, runs, _), (again, runs_again, said) = seen
        assert len(first) == 1 and first[0][0] == "ingot-tiny" and first == again
        assert runs == runs_again == [(1,)]
        assert "champion" in said and not (tmp_path / "store" / "mlflow" / "mlflow.db").exists()
