"""The table of live conversations, those at rest in order of idleness."""

from collections import OrderedDict
from collections.abc import Iterator

from conserve_sglang.core.ids import ConversationId
from conserve_sglang.dispatch.state import Conversation


class Conversations:
    """Live conversations by id. One is at rest while it has no open turn.

    Those at rest stand in two lines, each by the time of their last turn: `idle` may still hold
    KV, `lapsed` were seen to hold none. `misplaced` are those that joined their line behind
    younger ones; the lines are put in order when somebody asks who is first.
    """

    __slots__ = ("_idle", "_lapsed", "_live", "_misplaced")

    def __init__(self) -> None:
        self._live: dict[ConversationId, Conversation] = {}
        self._idle: OrderedDict[ConversationId, Conversation] = OrderedDict()
        self._lapsed: OrderedDict[ConversationId, Conversation] = OrderedDict()
        self._misplaced: set[ConversationId] = set()

    def __len__(self) -> int:
        return len(self._live)

    def get(self, conversation_id: ConversationId) -> Conversation | None:
        """A live conversation, or None."""
        return self._live.get(conversation_id)

    def wake(self, conversation_id: ConversationId, now: float) -> Conversation:
        """The conversation a turn arrived for, begun if it is not known; no longer at rest."""
        conversation = self._live.get(conversation_id)
        if conversation is None:
            conversation = self._live[conversation_id] = Conversation(conversation_id, now)
        else:
            self._leave_rest(conversation_id)
        return conversation

    def begin(self, conversation_id: ConversationId) -> Conversation:
        """A conversation that is not known; it is to `rest_since` some time."""
        conversation = self._live[conversation_id] = Conversation(conversation_id, 0.0)
        return conversation

    def rest(self, conversation: Conversation) -> None:
        """Its last open turn is over; it is the one idle for the shortest time."""
        self._idle[conversation.conversation_id] = conversation

    def lapse(self, conversation: Conversation) -> None:
        """An idle conversation holds no KV any more."""
        self._lapsed[conversation.conversation_id] = self._idle.pop(conversation.conversation_id)

    def rest_since(self, conversation: Conversation, since_s: float, *, holds_kv: bool) -> None:
        """Let a conversation rest as one that was last active at some time in the past."""
        self._leave_rest(conversation.conversation_id)
        conversation.last_active_at_s = since_s
        line = self._idle if holds_kv else self._lapsed
        last = next(reversed(line.values()), None)
        line[conversation.conversation_id] = conversation
        if last is not None and last.last_active_at_s > since_s:
            self._misplaced.add(conversation.conversation_id)

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation."""
        conversation.is_ended = True
        del self._live[conversation.conversation_id]
        self._leave_rest(conversation.conversation_id)

    def longest_idle(self) -> Conversation | None:
        """The conversation idle for the longest time among those that may hold KV."""
        if self._misplaced:
            self._put_in_order()
        return next(iter(self._idle.values()), None)

    def longest_at_rest(self) -> Conversation | None:
        """The conversation at rest for the longest time, with or without KV."""
        idle = self.longest_idle()
        lapsed = next(iter(self._lapsed.values()), None)
        if idle is None or lapsed is None:
            return idle or lapsed
        return min(idle, lapsed, key=lambda conversation: conversation.last_active_at_s)

    def live(self) -> Iterator[Conversation]:
        """All live conversations, in order of their beginning."""
        return iter(self._live.values())

    def _leave_rest(self, conversation_id: ConversationId) -> None:
        if self._idle.pop(conversation_id, None) is None:
            self._lapsed.pop(conversation_id, None)
        if self._misplaced:
            self._misplaced.discard(conversation_id)

    def _put_in_order(self) -> None:
        for line in (self._idle, self._lapsed):
            by_age = sorted(line.values(), key=lambda each: each.last_active_at_s)
            line.clear()
            line.update((each.conversation_id, each) for each in by_age)
        self._misplaced.clear()
