"""What a conversation shows of itself as its turns come and go."""

from conserve_sglang.dispatch.state import Conversation
from conserve_sglang.policy.api import History


def note_gap(history: History, conversation: Conversation, now: float) -> None:
    """A turn arrives; if its conversation was at rest after an answer, that ends a gap."""
    if conversation.num_open_turns:
        return
    gap_s = now - conversation.last_active_at_s
    history.num_gaps += 1
    history.gaps_s += gap_s
    history.longest_gap_s = max(history.longest_gap_s, gap_s)


def note_answer(conversation: Conversation, prompt_tokens: int, output_tokens: int) -> None:
    """A turn was answered whole; what its decoder held before it is still the conversation's
    `resident_tokens`, and what the prompt has beyond that was appended."""
    history = conversation.history
    if history is None:
        history = conversation.history = History()
    elif conversation.resident_tokens:
        added = prompt_tokens - conversation.resident_tokens
        history.longest_append = max(history.longest_append, added)
    history.num_answers += 1
    history.output_tokens += output_tokens
    history.longest_output = max(history.longest_output, output_tokens)
