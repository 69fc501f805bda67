"""Reading text sources of every format."""
