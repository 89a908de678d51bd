"""A model directory as an MLflow package (pyfunc, models from code), and the proof that it answers before anybody registers it.

save(model_directory, folder, fingerprint)
said = prove(folder)
"""

import sys
from pathlib import Path
from typing import Any

from model.errors import CheckpointError, IngotError

ROOT = Path(__file__).parents[1]
QUESTION = "What is a lighthouse?"
REQUIREMENTS = ("mlflow", "torch", "tokenizers", "safetensors", "numpy", "pandas", "pydantic")
"""What the packaged code imports; pinned to the versions installed here."""


def save(model: Path, out: Path, fingerprint: str) -> None:
    """Write the package of a model directory into an empty folder: weights, our model/ package, signature, pinned requirements."""
    import importlib.metadata

    import mlflow
    import pandas as pd

    mlflow.pyfunc.save_model(
        out,
        python_model=str(ROOT / "deploy" / "mlflow_model.py"),
        artifacts={"model": str(model)},
        code_paths=[str(ROOT / "model")],
        signature=signature(),
        input_example=(pd.DataFrame([{"prompt": QUESTION}]), {"max_new": 40}),
        pip_requirements=[f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in REQUIREMENTS],
        metadata={"ingot.fingerprint": fingerprint},
    )


def signature() -> Any:
    """Rows of `prompt` or `messages` → rows of `answer` and `finished`; parameters with their defaults."""
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    params = [
        ("max_new", DataType.long, 80),
        ("temperature", DataType.double, 0.0),
        ("top_p", DataType.double, 1.0),
        ("seed", DataType.long, 0),
    ]
    return ModelSignature(
        Schema([ColSpec(DataType.string, "prompt", required=False), ColSpec(Array(message), "messages", required=False)]),
        Schema([ColSpec(DataType.string, "answer"), ColSpec(DataType.string, "finished")]),
        ParamSchema([ParamSpec(*one) for one in params]),
    )


def prove(package: Path) -> str:
    """Load a package as MLflow does, ask it once by prompt and once by messages, and return what it said to QUESTION.

    Raises CheckpointError when it cannot be loaded or does not answer.
    """
    import mlflow
    import pandas as pd

    before = list(sys.path)
    try:
        loaded = mlflow.pyfunc.load_model(str(package))
        forms: list[dict[str, Any]] = [{"prompt": QUESTION}, {"messages": [{"role": "user", "content": QUESTION}]}]
        said = [str(loaded.predict(pd.DataFrame([form]), params={"max_new": 48})["answer"][0]) for form in forms]
    except IngotError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{package} does not answer as an MLflow model ({error!r}). Nothing is registered; mend the model."
        ) from error
    finally:
        sys.path[:] = before  # load_model puts the package's code first, which would outlive the package
    if said[0] != said[1]:
        raise CheckpointError(
            f"{package} answers a prompt with {said[0]!r}, but the same as messages with {said[1]!r}. Nothing is registered."
        )
    return said[0]
