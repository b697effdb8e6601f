"""The table of live conversations, those at rest in order of idleness."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from math import inf

from conserve_sglang.core.ids import ConversationId, TenantId
from conserve_sglang.dispatch.kv_ledger import WorkerState
from conserve_sglang.dispatch.state import Conversation, TenantAccount

MAX_IDLE_ASKED = 256


class Conversations:
    """Live conversations by id, and the tenants they belong to.

    A conversation is at rest while it has no open turn. Those of a tenant at rest stand in two
    lines, each by the time of their last turn: `idle` may still hold KV, `lapsed` were seen to
    hold none. Who asks for the longest idle of all looks at each tenant once; `rest_floor_s` and
    `idle_floor_s` spare that: no conversation at rest, or idle, was last active before.
    """

    __slots__ = ("_accounts", "_live", "idle_floor_s", "rest_floor_s")

    def __init__(self) -> None:
        self._live: dict[ConversationId, Conversation] = {}
        self._accounts: dict[TenantId, TenantAccount] = {}
        self.rest_floor_s = inf
        self.idle_floor_s = inf

    def __len__(self) -> int:
        return len(self._live)

    def get(self, conversation_id: ConversationId) -> Conversation | None:
        """A live conversation, or None."""
        return self._live.get(conversation_id)

    def tenant(self, tenant_id: TenantId) -> TenantAccount:
        """A tenant's account; of weight 1 unless told otherwise."""
        account = self._accounts.get(tenant_id)
        if account is None:
            account = self._accounts[tenant_id] = TenantAccount(tenant_id, 1.0)
        return account

    def tenants(self) -> Iterable[TenantAccount]:
        """All tenants heard of."""
        return self._accounts.values()

    def weigh(self, weights: Mapping[TenantId, float]) -> None:
        """Set tenants' weights; those not named weigh 1."""
        for account in self._accounts.values():
            account.weight = weights.get(account.tenant_id, 1.0)
        for tenant_id, weight in weights.items():
            self.tenant(tenant_id).weight = weight

    def begin(
        self, conversation_id: ConversationId, tenant: TenantAccount, now: float
    ) -> Conversation:
        """A new conversation."""
        conversation = Conversation(conversation_id, tenant, now)
        self._live[conversation_id] = conversation
        tenant.num_conversations += 1
        return conversation

    def wake(self, conversation_id: ConversationId) -> Conversation | None:
        """The conversation a turn arrived for, no longer at rest; None if it is not known."""
        conversation = self._live.get(conversation_id)
        if conversation is not None:
            self._leave_rest(conversation)
        return conversation

    def rest(self, conversation: Conversation) -> None:
        """Its last open turn is over; it is the one idle for the shortest time."""
        conversation.tenant.idle[conversation.conversation_id] = conversation
        self._lower(conversation.last_active_at_s)

    def lapse(self, conversation: Conversation) -> None:
        """An idle conversation holds no KV any more."""
        tenant = conversation.tenant
        del tenant.idle[conversation.conversation_id]
        tenant.lapsed[conversation.conversation_id] = conversation

    def rest_since(self, conversation: Conversation, since_s: float, *, holds_kv: bool) -> None:
        """Let a conversation rest as one that was last active at some time in the past."""
        self._leave_rest(conversation)
        conversation.last_active_at_s = since_s
        tenant = conversation.tenant
        line = tenant.idle if holds_kv else tenant.lapsed
        last = next(reversed(line.values()), None)
        line[conversation.conversation_id] = conversation
        if last is not None and last.last_active_at_s > since_s:
            tenant.is_mixed = True
        self._lower(since_s)

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation."""
        conversation.is_ended = True
        del self._live[conversation.conversation_id]
        conversation.tenant.num_conversations -= 1
        self._leave_rest(conversation)

    def longest_at_rest(self) -> Conversation | None:
        """The conversation at rest for the longest time, with or without KV."""
        found: Conversation | None = None
        self.rest_floor_s = inf
        for account in self._accounts.values():
            resting = account.longest_at_rest()
            if resting is not None and resting.last_active_at_s < self.rest_floor_s:
                found, self.rest_floor_s = resting, resting.last_active_at_s
        return found

    def idle_for(self, idle_s: float, now: float) -> Conversation | None:
        """One idle for `idle_s` that may hold KV: of the tenant with the largest share among those
        who have one, the longest idle."""
        found: Conversation | None = None
        if self.idle_floor_s + idle_s > now:
            return None
        self.idle_floor_s = inf
        for account in self._accounts.values():
            idle = account.longest_idle()
            if idle is None:
                continue
            self.idle_floor_s = min(self.idle_floor_s, idle.last_active_at_s)
            if idle.last_active_at_s + idle_s > now:
                continue
            if found is None or _rank(idle) < _rank(found):
                found = idle
        return found

    def most_overdue(
        self, overdue: Callable[[Conversation, float], float], idle_s: float, now: float
    ) -> Conversation | None:
        """As `idle_for`, but of that tenant's, the one that is most overdue by a measure of how
        long it has been idle; `MAX_IDLE_ASKED` are looked at."""
        longest = self.idle_for(idle_s, now)
        if longest is None:
            return None
        found, most = longest, overdue(longest, now - longest.last_active_at_s)
        for idle in islice(longest.tenant.idle.values(), MAX_IDLE_ASKED):
            rested_s = now - idle.last_active_at_s
            if rested_s < idle_s:
                break
            if (measure := overdue(idle, rested_s)) > most:
                found, most = idle, measure
        return found

    def most_impatient(
        self, prices: Mapping[WorkerState, float], usual_s: float, now: float
    ) -> tuple[Conversation | None, float]:
        """One that has been idle for longer than its KV is worth in seconds: its tokens at its
        worker's price of each, or `usual_s` where that has none. Of the tenant with the largest
        share among those who have one, the one that has outrun its worth most. None while there is
        none, and then the time at which there is one; of `MAX_IDLE_ASKED`, the longest idle of
        each."""
        found: Conversation | None = None
        best, due_at_s = (-inf, -inf), inf
        most_asked = max(1, MAX_IDLE_ASKED // max(1, len(self._accounts)))
        for account in self._accounts.values():
            if account.longest_idle() is None:
                continue
            for idle in islice(account.idle.values(), most_asked):
                pin, worth_s, since_s = idle.decoder, 0.0, idle.last_active_at_s
                if pin is not None and pin.epoch == idle.decoder_epoch:
                    price = prices.get(pin)
                    worth_s = usual_s if price is None else idle.resident_tokens * price
                if since_s + worth_s > now:
                    due_at_s = min(due_at_s, since_s + worth_s)
                    continue
                rank = (account.share, (now - since_s) / worth_s if worth_s > 0 else inf)
                if rank > best:
                    found, best = idle, rank
        return found, due_at_s

    def to_make_room(self, tenant: TenantAccount) -> Conversation | None:
        """Whom one more conversation of `tenant` may push out: the longest at rest of the tenant
        with the largest share, if that is more than the newcomer's would be, else its own."""
        largest = (tenant.num_conversations + 1) / tenant.weight
        found = tenant.longest_at_rest()
        for account in self._accounts.values():
            if account is not tenant and account.share >= largest:
                resting = account.longest_at_rest()
                if resting is not None:
                    largest, found = account.share, resting
        return found

    def live(self) -> Iterator[Conversation]:
        """All live conversations, in order of their beginning."""
        return iter(self._live.values())

    def _lower(self, since_s: float) -> None:
        if self.rest_floor_s <= since_s >= self.idle_floor_s:
            return  # the usual: what has just been active is no floor
        self.rest_floor_s = min(self.rest_floor_s, since_s)
        self.idle_floor_s = min(self.idle_floor_s, since_s)

    def _leave_rest(self, conversation: Conversation) -> None:
        tenant, key = conversation.tenant, conversation.conversation_id
        if tenant.idle.pop(key, None) is None:
            tenant.lapsed.pop(key, None)


def _rank(conversation: Conversation) -> tuple[float, float]:
    return -conversation.tenant.share, conversation.last_active_at_s
