"""A run as one HTML page: its graph, its timings, what every stage showed."""
