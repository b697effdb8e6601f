"""Conversations that began elsewhere: in an earlier life of the router, or in another replica."""

from conserve_sglang.dispatch import events
from conserve_sglang.dispatch.placer import Placer
from conserve_sglang.policy.api import PhaseOneCause


def restore(placer: Placer, event: events.ConversationRestored, now: float) -> None:
    """Take over what is known of a conversation.

    No worker is told to let go of anything: what this dispatcher believed was wrong, and may name
    the very worker that has the KV.
    """
    bookings, conversations = placer.bookings, placer.conversations
    conversation = conversations.get(event.conversation_id)
    if conversation is None:
        conversation = conversations.begin(
            event.conversation_id, conversations.tenant(event.tenant), now
        )
    opener = conversation.opener
    if opener is not None:
        bookings.take_back(opener)
        opener.attempts -= 1  # nothing was tried
        opener.turn_index = event.num_turns + 1
    bookings.unpin(conversation)
    decoder = bookings.ledger.find(event.decoder)
    conversation.cause = None
    if decoder is None:
        conversation.cause = PhaseOneCause.DECODER_LOST
    else:
        bookings.pin(conversation, decoder, event.resident_tokens)
    conversation.prompt_tokens = event.prompt_tokens
    conversation.num_turns = event.num_turns + conversation.num_open_turns
    conversation.num_kv_transfers = event.num_kv_transfers
    if not conversation.num_open_turns:
        since = now - event.idle_s
        conversations.rest_since(conversation, since, holds_kv=decoder is not None)
    if opener is not None:
        placer.place_or_hold(opener, now)
        placer.let_held_go(conversation, now)
    placer.serve_line(now)


def give_up(placer: Placer, event: events.ConversationTaken, now: float) -> None:
    """Count a conversation no longer; its open turns end here, where they began."""
    conversation = placer.conversations.get(event.conversation_id)
    if conversation is None or conversation.opener is not None:
        return  # who brings the KV to a decoder now, owns it
    placer.bookings.unpin(conversation)
    if not conversation.num_open_turns:
        placer.conversations.drop(conversation)
    placer.serve_line(now)


def count_peers(placer: Placer, event: events.PeersReported, now: float) -> None:
    """Leave room for what other replicas have on the workers."""
    ledger = placer.bookings.ledger
    for state in ledger.states():
        worker_id = state.spec.worker_id
        ledger.set_foreign(
            state, event.kv_tokens.get(worker_id, 0), event.backlog_tokens.get(worker_id, 0)
        )
    placer.serve_line(now)
