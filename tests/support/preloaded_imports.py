"""Imports the libraries of a rank in the process that ranks are forked from. Starts no thread."""

import os

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch

from stages.training.deepspeed_compat import import_deepspeed

import_deepspeed()
# Some is imported where it is first used: by an optimizer.
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
