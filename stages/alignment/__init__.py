"""Workshop of alignment: the mathematics of reward models and of PPO, as pure functions."""
