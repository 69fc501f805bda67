"""The work: every module here is one stage (or a family of them); the folders are workshops."""
