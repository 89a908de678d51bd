"""How a model leaves the house: the MLflow model and its page."""
