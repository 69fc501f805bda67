"""Text generation from a model folder and a prompt, for `headwater generate`."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.chat_template import encode_prompt
from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.generation.sampling import SamplingParams, sample
from stages.models.hf_io import is_chat
from stages.models.model_io import load_language_model


def generate_text(
    folder: Path,
    prompt: str,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> str:
    """Sample one response to a prompt from the model in `folder`.

    A model whose model card declares the chat format of Headwater gets the prompt as a user
    message; any other model continues the prompt as the beginning of a document.

    Raises:
        InputError: the folder has no model, the prompt fills the context, or an option is out of
            range.
    """
    folder = Path(folder)
    model, tokenizer = load_language_model(folder), open_tokenizer(folder)
    if isinstance(tokenizer, Tokenizer) and is_chat(folder):
        ids = encode_prompt(tokenizer, [Message("user", prompt)])
    else:
        ids = [tokenizer.document_start_id, *tokenizer.encode(prompt)]
    room = model.config.context_length - len(ids)
    if room < 1:
        raise InputError(
            f"the prompt of {len(ids)} tokens fills the context of {model.config.context_length}",
            remedy="shorten the prompt",
        )
    try:
        params = SamplingParams(min(max_new_tokens, room), temperature, top_k, top_p)
    except ValueError as error:
        raise InputError(str(error)) from error
    eos_id, pad_id = tokenizer.eos_id, tokenizer.padding_id
    responses = sample(model, [ids], params, eos_id=eos_id, pad_id=pad_id, seed=seed)
    return tokenizer.decode(responses.ids(0))
