"""HTML reports: the page of a run, and the comparison of trainings."""
