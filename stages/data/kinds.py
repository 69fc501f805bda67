"""The kinds of artifacts that the stages here make, with the readers that open them.

They are declared here and not next to their readers, because stage modules import them and must
stay light, while the readers import pyarrow or torch. Readers are therefore named as text, and take
the names of their kinds from here. A package outside the tree registers its own kinds.
"""

from __future__ import annotations

from pipeline.kind import Kind, register_kind

DOCUMENTS = register_kind(
    Kind(
        "Documents",
        reader="stages.data.documents:Documents",
        headline_metrics=("documents",),
    )
)
CONVERSATIONS = register_kind(
    Kind(
        "Conversations",
        reader="stages.data.conversation_dataset:Conversations",
        headline_metrics=("kept_share", "conversations", "left_out"),
    )
)
PREFERENCES = register_kind(
    Kind(
        "Preferences",
        reader="stages.data.preference_dataset:Preferences",
        headline_metrics=("pairs", "rankings", "left_out"),
    )
)
IMAGE_TEXT = register_kind(
    Kind(
        "ImageText",
        reader="stages.data.image_text_dataset:ImageTextStore",
        headline_metrics=("images",),
    )
)
TOKENIZER = register_kind(
    Kind("Tokenizer", reader="stages.data.tokenizers.sentencepiece_tokenizer:Tokenizer")
)
TOKENS = register_kind(
    Kind("Tokens", reader="stages.data.token_store:TokenStore", headline_metrics=("train_tokens",))
)
RETRIEVAL = ("zero_shot", "image_to_text_r1", "image_to_text_r5", "text_to_image_r5")
MODEL = register_kind(
    Kind(
        "Model",
        promotable=True,
        headline_metrics=(
            *("reward_gain", "kl", "perplexity", "bits_per_byte"),
            *RETRIEVAL,
            "loss",
        ),
    )
)
REWARD_MODEL = register_kind(
    Kind("RewardModel", promotable=True, headline_metrics=("accuracy", "loss"))
)
METRICS = register_kind(
    Kind(
        "Metrics",
        headline_metrics=(
            *("reward_accuracy", "accuracy", "reward_gain", "perplexity", "bits_per_byte"),
            *("augmentation_gain", *RETRIEVAL, "zero_shot_single", "linear_probe"),
        ),
    )
)
