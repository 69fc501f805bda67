"""How people and machines reach the pipeline: the command line, clusters, jobs and checks."""
