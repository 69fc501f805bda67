"""Alignment: rankings, reward evaluation, rollouts and PPO updates as functions and data."""
