"""Text generation from a model folder and a prompt, for `headwater generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message
from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer, open_tokenizer
from stages.data.tokenizers.sentencepiece_tokenizer import is_headwater_tokenizer
from stages.data.tokenizers.template_files import model_template
from stages.generation.history import History
from stages.generation.sampling import Responses, SamplingParams, sample
from stages.models.hf_io import is_chat
from stages.models.language_model import LanguageModel
from stages.models.model_io import load_language_model


@dataclass(frozen=True)
class Generated:
    """A response."""

    text: str
    """Without control tokens."""
    ended_by: str | None
    """Name of the control token that ended it; None if the length did."""


def generate_text(
    folder: Path,
    prompt: str,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    history: History | None = None,
) -> Generated:
    """Sample one response to a prompt from the model in `folder`.

    A model that takes chats gets the prompt as a user message, after those
    of `history`; any other model continues the prompt as the beginning of a document. A response
    ends at an end token, and at any other control token that the chat template writes, such as that
    of a role.

    Raises:
        InputError: the folder has no model, there is a history and no chat format, the prompt
            fills the context, or an option is out of range.
    """
    folder = Path(folder)
    try:
        params = SamplingParams(max_new_tokens, temperature, top_k, top_p)
    except ValueError as error:
        raise InputError(str(error)) from error
    model = load_language_model(folder)
    if takes_chats(folder):
        chat = ChatFormat.open(folder)
        before = history or History()
        ids = chat.encode_prompt([*before.messages, Message("user", prompt)], before.tools)
        drawn = _sample(model, ids, params, chat.stop_ids, chat.pad_id, seed)
        found = drawn.ids(0, eos=True)
        shown = chat.shown_length(found)
        return Generated(chat.decode(found), chat.control_text(found[shown : shown + 1]) or None)
    if history:
        raise InputError(
            "the model has no chat format, so that it takes no messages before the prompt",
            where=str(folder),
            remedy="name a model that was fine-tuned on conversations, or give the prompt alone",
        )
    tokenizer: AnyTokenizer = open_tokenizer(folder)
    ids = [tokenizer.document_start_id, *tokenizer.encode(prompt)]
    drawn = _sample(model, ids, params, [tokenizer.eos_id], tokenizer.padding_id, seed)
    ended = "the end of the document" if drawn.finished[0] else None
    return Generated(tokenizer.decode(drawn.ids(0)), ended)


def takes_chats(folder: Path) -> bool:
    """Return whether prompts are given in a chat format: of a model with a tokenizer of Headwater
    its card decides, because base models have a template too; of any other its template."""
    if is_chat(folder) or is_headwater_tokenizer(folder):
        return is_chat(folder)
    return model_template(folder) is not None


def _sample(
    model: LanguageModel,
    ids: list[int],
    params: SamplingParams,
    end_ids: Sequence[int],
    pad_id: int,
    seed: int,
) -> Responses:
    room = model.config.context_length - len(ids)
    if room < 1:
        raise InputError(
            f"the prompt of {len(ids)} tokens fills the context of {model.config.context_length}",
            remedy="shorten the prompt",
        )
    fitting = replace(params, max_new_tokens=min(params.max_new_tokens, room))
    return sample(model, [ids], fitting, end_ids=end_ids, pad_id=pad_id, seed=seed)
