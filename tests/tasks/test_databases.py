"""Databases made beforehand: a new place gets a copy, one that is there is left alone, and without any all goes on as ever."""

import sqlite3
from contextlib import closing

import pytest

from tasks import databases
from tasks.mlflow_client import connect


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.setattr(databases, "TEMPLATES", tmp_path / "templates")
    return tmp_path / "templates"


def test_a_copy_comes_where_nothing_is_and_what_is_there_stays(templates, tmp_path):
    templates.mkdir()
    (templates / "prefect.db").write_bytes(b"new")
    place = tmp_path / "home" / "prefect" / "prefect.db"
    databases.begin(place)
    assert place.read_bytes() == b"new" and [p.name for p in place.parent.iterdir()] == ["prefect.db"]
    place.write_bytes(b"mine")
    databases.begin(place)
    assert place.read_bytes() == b"mine"


def test_without_a_template_nothing_is_made(templates, tmp_path):
    databases.begin(tmp_path / "prefect.db")
    assert not (tmp_path / "prefect.db").exists()


def lines(row: tuple[str]) -> list[str]:
    """What a table is made of: MLflow's migrations write its constraints in another order each time."""
    return sorted(line.strip(" \t,") for line in row[0].splitlines())


@pytest.mark.full
def test_what_is_made_is_what_the_servers_would_make_and_names_no_folder_of_its_own(templates, tmp_path):
    databases.make()
    assert sorted(path.name for path in templates.iterdir()) == ["mlflow.db", "prefect.db"]
    tables = {}
    for name in ("copied", "made"):
        client = connect(f"sqlite:///{tmp_path / name}/mlflow.db")
        assert [e.name for e in client.search_experiments()] == ["Default"]
        client.create_experiment("one")
        with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as database:
            tables[name] = sorted(map(lines, database.execute("select sql from sqlite_master where sql is not null")))
            assert not [row for row in database.execute("select artifact_location from experiments") if "templates" in row[0]]
        (templates / "mlflow.db").unlink(missing_ok=True)
    assert tables["copied"] == tables["made"]
    with closing(sqlite3.connect(templates / "prefect.db")) as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
        assert database.execute("select count(*) from flow_run").fetchone() == (0,)
