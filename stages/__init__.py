"""Stages: every module here is one stage or a family of stages; the folders hold their parts."""

from stages.data import kinds as kinds  # registers the kinds before any stage names them
