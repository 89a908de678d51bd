"""The registered model as MLflow loads it (models from code): prompts in, answers out.

    mlflow models serve --env-manager local -m models:/NAME@candidate
    curl … -d '{"inputs": [{"prompt": "What is a lighthouse?"}], "params": {"max_new": 40}}'

A row has `prompt`, or `messages` (a list of role and content). Parameters: max_new, temperature, top_p, seed.
"""

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from model.errors import InputError

DEFAULTS = {"max_new": 80, "temperature": 0.0, "top_p": 1.0, "seed": 0}
BATCH = 32
"""Rows generated together."""


class IngotModel(PythonModel):
    """A chat model read from the artifact `model` (a Hugging Face directory: safetensors, config, tokenizer)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer; MLflow wants the argument to be named `context`."""
        import torch

        from model.families import load
        from model.tokenizer import load as load_tokenizer

        folder = context.artifacts["model"]
        self.model = load(folder, "cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(folder)

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One answer a row: columns `answer` and `finished` (stop or length).

        Raises InputError for a row that is no prompt or fills the model's context, ConfigError for a parameter out of bounds.
        """
        from model.generate import generate
        from model.tokenizer import render

        wanted = DEFAULTS | (params or {})
        seed = wanted.pop("seed")
        rows = model_input.to_dict("records")
        prompts = [render(messages(row, number), self.tokenizer, answer=True)[0] for number, row in enumerate(rows)]
        answers = []
        for start in range(0, len(prompts), BATCH):
            answers += generate(self.model, self.tokenizer, prompts[start : start + BATCH], seed=seed + start, **wanted)
        return pd.DataFrame([{"answer": one.text, "finished": one.finished} for one in answers], columns=["answer", "finished"])


def messages(row: dict[str, Any], number: int) -> list[dict[str, str]]:
    """The conversation of one input row. An absent cell is None or NaN; MLflow gives a list as a list or an array."""
    given, prompt = row.get("messages"), row.get("prompt")
    if given is not None and hasattr(given, "__len__") and len(given):
        return list(given)
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"row {number}: prompt is {prompt!r}; give a text, or messages: a list of objects with role and content")
    return [{"role": "user", "content": prompt}]


mlflow.models.set_model(IngotModel())
