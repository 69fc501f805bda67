"""Running a plan: runs, stages, attempts, cancellation."""
