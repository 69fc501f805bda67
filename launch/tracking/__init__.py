"""What MLflow is told of runs and models; the truth stays in the store."""
