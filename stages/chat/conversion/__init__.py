"""Files of rows -> conversations and rankings: what `conversations` and `rankings` run."""
