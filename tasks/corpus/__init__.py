"""The plain code of the corpus stages: no Prefect, no torch."""
