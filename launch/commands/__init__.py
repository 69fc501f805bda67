"""One module per command of `headwater`."""
