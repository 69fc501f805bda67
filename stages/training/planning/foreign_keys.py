"""Keys of other frameworks (transformers, TRL, nanoGPT, Megatron, DeepSpeed, Lightning) in the
words of a pipeline file.

A key with the same meaning is answered with ours, wherever it is among the parameters of the stage;
one with another meaning, with what replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.stage import UnsupportedKeys
from stages.training.unsupported_parallelism import LAYOUTS

OUR_KEYS: Mapping[str, str] = {
    "train.lr": "learning_rate max_learning_rate max_lr peak_lr base_lr actor_lr",
    "train.steps": (
        "max_steps num_steps num_train_steps total_steps train_steps training_steps max_iters "
        "num_iters train_iters iterations"
    ),
    "global_batch_size": (
        "batch_size train_batch_size total_batch_size effective_batch_size global_batch"
    ),
    "micro_batch_size": (
        "per_device_train_batch_size per_device_batch_size per_gpu_batch_size micro_batch "
        "device_batch_size train_micro_batch_size_per_gpu"
    ),
    "train.warmup_steps": (
        "warmup_ratio warmup_iters warmup num_warmup_steps lr_warmup_steps lr_warmup_iters "
        "warmup_fraction"
    ),
    "lr_schedule": "lr_scheduler lr_scheduler_type scheduler lr_decay_style schedule",
    "weight_decay": "wd weight_decay_rate l2",
    "optimizer": "optim optimizer_type optimizer_name",
    "beta1": "adam_beta1 beta_1",
    "beta2": "adam_beta2 beta_2",
    "train.eps": "adam_epsilon adam_eps epsilon",
    "grad_clip": "max_grad_norm gradient_clipping gradient_clip_val clip_grad clip_grad_norm",
    "dtype": "precision mixed_precision torch_dtype amp data_type",
    "eval_interval": "eval_steps eval_every evaluation_interval val_check_interval eval_freq",
    "checkpoint_interval": "save_steps save_interval save_every save_freq checkpoint_every",
    "checkpoint_keep_latest": "save_total_limit keep_checkpoint_max max_checkpoints",
    "offload_optimizer": "cpu_offload offload offload_optimizer_device optimizer_offload",
    "train.zero_stage": "zero zero_stage zero_optimization_stage",
    "num_layers": "n_layer n_layers num_hidden_layers depth layers",
    "hidden_size": "n_embd n_embed d_model dim embedding_size hidden_dim",
    "num_heads": "n_head n_heads num_attention_heads attention_heads",
    "num_kv_heads": "num_key_value_heads n_kv_heads n_kv_head kv_heads num_query_groups",
    "head_size": "head_dim kv_channels",
    "intermediate_size": "d_ff ffn_dim ffn_hidden_size mlp_dim n_inner feedforward_dim",
    "context_length": (
        "seq_len seq_length sequence_length max_seq_len max_seq_length max_sequence_length "
        "block_size n_positions n_ctx context_size context_len max_position_embeddings"
    ),
    "dropout": "resid_pdrop attn_pdrop embd_pdrop hidden_dropout_prob attention_dropout",
    "tie_embeddings": "tie_word_embeddings tied_embeddings weight_tying",
    "activation_checkpointing": "gradient_checkpointing activation_checkpoint recompute",
    "compile": "torch_compile use_compile",
    "ppo_epochs": "num_ppo_epochs update_epochs",
    "num_minibatches": "num_mini_batches mini_batches",
    "clip_range": "cliprange clip_eps clip_epsilon epsilon_clip clip_ratio",
    "value_clip_range": "cliprange_value vf_clip value_clip",
    "gae_lambda": "lam lambda gae_lam",
    "gamma": "discount discount_factor",
    "kl_coef": "init_kl_coef kl_beta kl_penalty kl_coeff",
    "max_new_tokens": "response_length max_response_length max_gen_len generate_max_len",
    "rollout_batch_size": "num_rollouts episodes_per_batch",
    "train.tokens": "max_tokens num_tokens total_tokens train_tokens token_budget",
    "seed": "random_seed data_seed rng_seed manual_seed",
    "workers.num": "num_workers world_size num_processes nproc_per_node nproc num_proc dp_size",
}
"""Our key, dotted as far as it is ambiguous -> words of others for the same."""

EPOCHS = "epoch epochs num_epochs num_train_epochs max_epochs n_epochs train_epochs"

_BY_STEPS = (
    "the length of a training is given in steps, not epochs",
    "set train.steps; `headwater plan` shows the tokens, and warns above 4 epochs",
)
_DEVICES = (
    "GPUs belong to the workers, one process each",
    "set workers.num to the number of GPUs, and workers.gpus to 1",
)
_ACCUMULATION = (
    "the number of forward passes per step follows from the batch and the workers",
    "set train.global_batch_size and train.micro_batch_size",
)
_BETAS = ("the two decay rates are two keys", "set train.beta1 and train.beta2")
_LOWEST = ("the lowest learning rate is relative to the peak", "set train.min_lr_ratio")
_LOGGING = ("every step is logged", "remove it")
_OUTPUT = ("outputs are artifacts of the store", "remove it; the option --store names the store")
_RESUME = ("checkpoints are found without a key", "remove it; `headwater resume` continues a run")
_START = (
    "a model to start from is an input, not a name",
    "import it by a stage with `uses: pretrained`, and refer to that stage",
)
_VOCABULARY = (
    "the vocabulary is that of the tokenizer",
    "set vocab_size of the stage tokenize.train",
)


def _half(name: str) -> tuple[str, str]:
    """Return reason and alternative for a key that names a precision."""
    return "the precision is one key", f"set train.dtype to {name}"


_EXPLAINED: Mapping[tuple[str, str], str] = {
    _BY_STEPS: EPOCHS,
    _DEVICES: "gpus num_gpus n_gpus n_gpu gpu devices num_devices device",
    _ACCUMULATION: (
        "gradient_accumulation_steps grad_accum gradient_accumulation grad_accum_steps "
        "accumulate_grad_batches num_micro_batches"
    ),
    _BETAS: "betas adam_betas",
    _LOWEST: "min_lr min_learning_rate lr_min eta_min",
    _half("float16"): "fp16 float16 half use_fp16",
    _half("bfloat16"): "bf16 bfloat16 use_bf16",
    _half("float32"): "fp32 float32 tf32",
    _LOGGING: "logging_steps log_interval log_every log_freq",
    _OUTPUT: "output_dir out_dir save_dir save_path logging_dir",
    _RESUME: "resume resume_from resume_from_checkpoint load_checkpoint",
    _START: "model_name model_name_or_path pretrained_model base_model pretrained",
    _VOCABULARY: "vocab_size n_vocab padded_vocab_size",
}
"""Reason and alternative -> words of others."""

FOREIGN_KEYS: UnsupportedKeys = {
    **LAYOUTS,
    **{word: key for key, words in OUR_KEYS.items() for word in words.split()},
    **{word: why for why, words in _EXPLAINED.items() for word in words.split()},
}
"""Our key, or reason and alternative, by foreign key; for the parameters of a training."""
SFT_KEYS: UnsupportedKeys = {
    **FOREIGN_KEYS,
    **dict.fromkeys(EPOCHS.split(), "train.epochs"),
    **dict.fromkeys(OUR_KEYS["context_length"].split(), "max_length"),
}
"""The same for SFT, which counts epochs too, and whose model has its own context."""
