"""Training: trainer, DeepSpeed engines, worker groups, checkpoints."""
