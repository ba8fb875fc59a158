"""Studies: from a YAML file to trials, run by Ray Tune, kept by Optuna, shown in MLflow."""
