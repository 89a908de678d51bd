"""Empty databases of Prefect and MLflow, made once at installation: a new store begins with copies, since making their tables takes ten seconds.

python -m tasks.databases          (make install)
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

TEMPLATES = Path(sys.prefix) / "share" / "ingot"


def make() -> None:
    """Write prefect.db and mlflow.db to TEMPLATES."""
    from tasks.mlflow_client import connect

    TEMPLATES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TEMPLATES) as folder:
        made = Path(folder)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {"PREFECT_HOME": folder}
        subprocess.run([sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"], env=env, check=True, capture_output=True)
        connect(f"sqlite:///{made}/mlflow.db").search_experiments()
        with closing(sqlite3.connect(made / "mlflow.db")) as database, database:
            database.execute("delete from experiments")  # its default one names this folder; MLflow makes it anew where there is none
        for name in ("prefect.db", "mlflow.db"):
            os.replace(made / name, TEMPLATES / name)


def begin(place: Path) -> None:
    """Put a copy at `place` (…/prefect.db or …/mlflow.db) if nothing is there; an older one than its server wants is migrated by it as ever."""
    if place.exists() or not (TEMPLATES / place.name).exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}")
    shutil.copyfile(TEMPLATES / place.name, temporary)
    try:
        os.link(temporary, place)
    except FileExistsError:
        pass  # another process was first
    finally:
        temporary.unlink()


if __name__ == "__main__":
    make()
