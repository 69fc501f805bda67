"""The kinds of artifacts that the stages here make, with the readers that open them.

Readers are named as text, because stage modules import this one and must stay light.
"""

from __future__ import annotations

from pipeline.kind import Kind, register_kind

DOCUMENTS = register_kind(Kind("Documents", reader="stages.data.documents:Documents"))
CONVERSATIONS = register_kind(
    Kind("Conversations", reader="stages.data.conversation_dataset:Conversations")
)
PREFERENCES = register_kind(
    Kind("Preferences", reader="stages.data.preference_dataset:Preferences")
)
IMAGE_TEXT = register_kind(
    Kind("ImageText", reader="stages.data.image_text_dataset:ImageTextStore")
)
TOKENIZER = register_kind(
    Kind("Tokenizer", reader="stages.data.tokenizers.sentencepiece_tokenizer:Tokenizer")
)
TOKENS = register_kind(Kind("Tokens", reader="stages.data.token_store:TokenStore"))
MODEL = register_kind(Kind("Model", promotable=True))
REWARD_MODEL = register_kind(Kind("RewardModel", promotable=True))
METRICS = register_kind(Kind("Metrics"))
