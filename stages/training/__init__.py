"""Workshop: the one training loop, its DeepSpeed engines, worker groups and checkpoints."""
