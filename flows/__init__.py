"""What happens, in which order: Prefect flows without logic, the recipes and the command line."""
