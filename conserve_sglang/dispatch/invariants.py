"""What must hold after every event. Run in tests after each step, in production on demand."""

from collections import Counter

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.worker import Role
from conserve_sglang.dispatch.dispatcher import Dispatcher
from conserve_sglang.policy.api import Defer


def validate(dispatcher: Dispatcher) -> None:
    """Raise AssertionError unless the dispatcher's books add up.

    The ledger equals the sum of what conversations and turns say they hold; nothing is negative;
    every open turn is sent, waiting, held or pausing, and in exactly one of these; every live
    conversation has at most one pin, on a worker that is up; nobody waits for what is there.
    """
    conversations = list(dispatcher._conversations.live())
    may_prefillers = getattr(dispatcher._placer.policy, "decodes_on_prefillers", False)
    turns = list(dispatcher._turns.values())
    resident: Counter[WorkerId] = Counter()
    headroom: Counter[WorkerId] = Counter()
    pinned: Counter[WorkerId] = Counter()
    for conversation in conversations:
        pin = dispatcher._bookings.pin_of(conversation)
        assert conversation.resident_tokens >= 0, "resident tokens are negative"
        if pin is None:
            assert conversation.resident_tokens == 0, "resident tokens without a pin"
            assert conversation.headroom_tokens == 0, "headroom without a pin"
            continue
        assert pin.is_up, "pinned to a worker that is not up"
        assert pin.spec.role is not Role.PREFILL or may_prefillers, "pinned to a prefiller"
        resident[pin.spec.worker_id] += conversation.resident_tokens
        headroom[pin.spec.worker_id] += conversation.headroom_tokens
        pinned[pin.spec.worker_id] += 1
    reserved: Counter[WorkerId] = Counter()
    backlog: Counter[WorkerId] = Counter()
    for turn in turns:
        if turn.decoder is not None and turn.decoder_epoch == turn.decoder.epoch:
            reserved[turn.decoder.spec.worker_id] += turn.reserved_tokens
        if turn.prefiller is not None and turn.prefiller_epoch == turn.prefiller.epoch:
            backlog[turn.prefiller.spec.worker_id] += turn.backlog_tokens
    for load in dispatcher.worker_loads():
        name = load.worker_id
        assert load.resident_tokens == resident[name], f"{name}: resident differs"
        assert load.reserved_tokens == reserved[name], f"{name}: reserved differs"
        assert load.backlog_tokens == backlog[name], f"{name}: backlog differs"
        assert load.is_up or not load.takes_turns, f"{name}: takes turns though it is not up"
        assert load.num_conversations == pinned[name], f"{name}: conversations differ"
        assert min(load.resident_tokens, load.reserved_tokens, load.backlog_tokens) >= 0, name
    ledger = dispatcher._bookings.ledger
    for role in Role:
        for worker_id in (*ledger.workers(role), ledger.most_free(role)):
            assert worker_id is None or ledger.state(worker_id).takes_turns, "takes no turns"
    for state in ledger.states():
        assert state.headroom_tokens == headroom[state.spec.worker_id], "headroom differs"
    _validate_signals(dispatcher)
    _validate_turns(dispatcher)
    _validate_tenants(dispatcher)


def _validate_signals(dispatcher: Dispatcher) -> None:
    """What policies read of the workers' work is what the turns sent there say."""
    pending: Counter[WorkerId] = Counter()
    running: Counter[WorkerId] = Counter()
    for turn in dispatcher._turns.values():
        decoder, prefiller = turn.decoder, turn.prefiller
        if decoder is not None and turn.decoder_epoch == decoder.epoch:
            running[decoder.spec.worker_id] += 1
            pending[decoder.spec.worker_id] += 0 if prefiller else turn.pending_tokens
        if prefiller is not None and turn.prefiller_epoch == prefiller.epoch:
            pending[prefiller.spec.worker_id] += turn.pending_tokens
    for state in dispatcher._bookings.ledger.states():
        name = state.spec.worker_id
        assert state.pending_tokens == pending[name], f"{name}: pending tokens differ"
        assert state.num_running == running[name], f"{name}: running turns differ"
    waiting = sum(turn.line_tokens for turn in dispatcher._turns.values() if turn.is_waiting)
    assert dispatcher._line.order.waiting_tokens == waiting, "waiting tokens miscounted"


def _validate_turns(dispatcher: Dispatcher) -> None:
    held = 0
    for conversation in dispatcher._conversations.live():
        held += len(conversation.held or ())
        assert not (conversation.held and conversation.num_open_turns == 0), "held but not open"
        opener = conversation.opener
        assert opener is None or opener.decoder is not None, "opener was not sent"
        assert opener is not None or not conversation.held, "held behind nothing"
    for turn in dispatcher._turns.values():
        if turn.is_moving:
            assert turn.conversation.opener is turn, "moves a conversation past its opener"
            pin = dispatcher._bookings.pin_of(turn.conversation)
            assert pin is not turn.decoder or pin is None, "moves to where the pin is"
    waiting = sum(turn.is_waiting for turn in dispatcher._turns.values())
    unsent = sum(turn.decoder is None for turn in dispatcher._turns.values())
    assert waiting == dispatcher._line.num_waiting, "waiting turns miscounted"
    assert held == dispatcher._line.num_held, "held turns miscounted"
    pausing = dispatcher._line.num_pausing
    assert unsent == waiting + held + pausing, "a turn is neither sent nor in one of the queues"
    first = dispatcher._line.order.first()
    if first is not None:
        assert isinstance(dispatcher._placer.ask(first), Defer), "the first in line could be served"
        assert first.conversation.opener is None, "waits for a place, not for its conversation"


def _validate_tenants(dispatcher: Dispatcher) -> None:
    turns = list(dispatcher._turns.values())
    for account in dispatcher._conversations.tenants():
        name = account.tenant_id
        live = [c for c in dispatcher._conversations.live() if c.tenant is account]
        num_waiting = sum(t.is_waiting for t in turns if t.conversation.tenant is account)
        assert account.num_conversations == len(live), f"{name}: conversations miscounted"
        assert account.num_waiting == num_waiting, f"{name}: waiting turns miscounted"
        num_held = sum(len(c.held or ()) for c in live)
        assert account.num_held == num_held, f"{name}: held turns miscounted"
        assert sum(turn.is_waiting for turn in account.waiting) == num_waiting, f"{name}: line"
        holding = {c.conversation_id for c in live if c.held}
        assert set(account.holding) == holding, f"{name}: holding differs"
