"""Shares pins with other replicas of the router, so that a conversation's turns may go to any.

Whoever served a conversation last owns it: it counts its KV, writes what became of it, and places
its next turn without asking. A replica that gets a turn of another's conversation claims it first
and reads its pin; the old owner is told. A pin is agreed on before the turn that brings KV there is
sent: the first replica wins, the others follow. What slips through (a message lost, two turns at
once) costs a prefill, not an answer: a decoder refuses a turn whose prefix it has not.

Without Redis this replica goes on alone with what it knows, and squares it afterwards.
"""

import logging
import time
from functools import partial
from typing import Any, NamedTuple

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    Command,
    ConversationEnded,
    ConversationRestored,
    ConversationTaken,
    SendTurn,
)
from conserve_sglang.router.brain import Arrival, Brain
from conserve_sglang.router.conversations import Conversation
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.history import FiledAt, PromptTrail, Trail, beginnings
from conserve_sglang.router.memory import describe, recall
from conserve_sglang.router.peers import Peers
from conserve_sglang.router.replica_line import BATCH, Line, Then
from conserve_sglang.state.record import SavedConversation
from conserve_sglang.state.shared import Call, SharedStore, packed, unpacked

logger = logging.getLogger(__name__)


class Owned(NamedTuple):
    """A conversation of ours: which change of owner made it so, and its pin in Redis."""

    n: int
    pin: str


class Replica(Line):
    """The brain's way to the other replicas."""

    def __init__(self, store: SharedStore, brain: Brain, fleet: Fleet) -> None:
        super().__init__(store)
        self._brain = brain
        self._fleet = fleet
        self._owned: dict[str, Owned] = {}
        self._dirty: set[str] = set()
        self._unsure: set[str] = set()  # written though it may be another's by now
        self._waiting: dict[TurnId, Arrival] = {}
        self._claims: dict[str, list[Arrival]] = {}
        self._held: dict[TurnId, SendTurn] = {}
        self._peers = Peers(brain)
        brain.sharing = self
        brain.conversations.changed = self._changed

    # Sharing

    def arrive(self, turn: Arrival) -> None:
        brain, history = self._brain, turn.history
        trail = history.trail if turn.name is None and history is not None else None
        if trail is not None and self.problem is None:
            self._waiting[turn.turn_id] = turn
            self._look_for(turn, trail)
            return
        brain.identify(turn)
        key = turn.conversation.key
        if turn.name is None and self.problem is None:
            self._owned[key] = Owned(0, "")  # nobody else can know it yet
        if key in self._owned or self.problem is not None:
            brain.place(turn)
            return
        self._waiting[turn.turn_id] = turn
        others = self._claims.setdefault(key, [])
        others.append(turn)
        if len(others) == 1:
            self.ask(("CLAIM", (key, 0)), partial(self._claimed, turn.conversation))

    def dropped(self, turn: Arrival) -> bool:
        if self._waiting.pop(turn.turn_id, None) is None:
            return False
        if turn.conversation.key:
            turn.conversation.num_open_turns -= 1
        return True

    def holds(self, command: Command) -> bool:
        if self._held:
            self._held.pop(command.turn_id, None)  # type: ignore[union-attr]
        if command.__class__ is not SendTurn or not command.keeps_kv or self.problem is not None:
            return False
        owned = self._owned.get(command.conversation_id)
        wanted = self._pin(command.decoder)
        if owned is not None and owned.pin == wanted:
            return False
        if owned is None and command.prefiller is None:
            return False  # a tail turn where its KV is; another replica has the next
        self._held[command.turn_id] = command
        expected = "" if owned is None else owned.pin
        call = ("PIN", (command.conversation_id, expected, wanted))
        self.ask(call, partial(self._pinned, command))
        return True

    def ended(self, key: ConversationId) -> None:
        self._dirty.add(key)
        self._unsure.add(key)
        self._owned.pop(key, None)
        self.ask(("ENDED", (key,)), lambda answer: None)

    def claim(self, conversation: Conversation, then: Then) -> None:
        def claimed(answer: Any) -> None:
            if answer:
                self._take_over(conversation, *answer)
            then(None)

        if conversation.key in self._owned:
            then(None)
        else:
            self.ask(("CLAIM", (conversation.key, 1)), claimed)

    def read(self, key: ConversationId, then: Then) -> None:
        self.ask(("READ", (key,)), lambda answer: then(unpacked(answer) if answer else None))

    # turns that come

    def _claimed(self, conversation: Conversation, answer: Any) -> None:
        turns = self._claims.pop(conversation.key)
        if answer is not None:
            self._take_over(conversation, *answer)
        for turn in turns:
            if self._waiting.pop(turn.turn_id, None) is not None:
                self._brain.place(turn)

    def _look_for(self, turn: Arrival, trail: Trail) -> None:
        if not isinstance(trail, PromptTrail):
            self._take(turn, list(beginnings(trail, _nowhere)))
            return
        blocks = [block for block, _ in trail.links]

        def told(answer: Any) -> None:
            known = zip(blocks, answer or (), strict=False)
            lengths = {block: [int(each) for each in ends] for block, ends in known}
            self._take(turn, list(beginnings(trail, lambda block: lengths.get(block, ()))))

        self.ask(("LENGTHS", tuple(blocks)), told)

    def _take(self, turn: Arrival, places: list[FiledAt]) -> None:
        digests = tuple(at.digest for at in places)
        self.ask(("TAKE", digests), partial(self._taken, turn, places))

    def _taken(self, turn: Arrival, places: list[FiledAt], answer: Any) -> None:
        brain, table = self._brain, self._brain.conversations
        is_open = self._waiting.pop(turn.turn_id, None) is not None
        if not answer or not (found := self._found(answer)):
            if is_open and self.problem is None:
                brain.belongs(turn, table.new(turn.tenant))
                self._owned[turn.conversation.key] = Owned(0, "")
                brain.place(turn)
            elif is_open:
                brain.identify(turn)
                brain.place(turn)
            return
        at = places[answer[0]]
        if not is_open:  # its client left, and may come again
            table.refile(found, at)
            self._changed(found.key)
            return
        if turn.history is not None:
            turn.history.taken_from = at
        brain.belongs(turn, found)
        brain.place(turn)

    def _found(self, answer: Any) -> Conversation | None:
        """The conversation that was taken from the index; it is ours now."""
        _, raw_key, claimed = answer
        table, key, saved = self._brain.conversations, raw_key.decode(), unpacked(claimed[3])
        conversation = table.by_key(key)
        if conversation is None and saved is not None:
            tenant = TenantId(saved.tenant)
            conversation = table.restore(ConversationId(key), tenant, saved.name)
        if conversation is not None:
            self._take_over(conversation, *claimed)
            table.refile(conversation, None)
        return conversation

    # pins

    def _pin(self, worker_id: WorkerId) -> str:
        return f"{worker_id}@{self._fleet.worker(worker_id).incarnation or ''}"

    def _pinned(self, command: SendTurn, answer: Any) -> None:
        is_wanted = self._held.get(command.turn_id) is command
        if answer is not None:
            has_won, n, pin, row = answer
            key = command.conversation_id
            self._owned[key] = Owned(n, pin.decode())
            conversation = self._brain.conversations.by_key(key)
            if not has_won and is_wanted and conversation is not None:
                if not pin:
                    if not self.holds(command):  # nobody has it any more: once again
                        self._brain.pass_on(command)
                    return
                self._restore(conversation, pin.decode(), unpacked(row))
                is_wanted = self._held.get(command.turn_id) is command
        if is_wanted:
            del self._held[command.turn_id]
            self._brain.pass_on(command)

    def _take_over(
        self, conversation: Conversation, n: int, was_ours: int, pin: bytes, row: bytes
    ) -> None:
        """A conversation is ours from now on, as it is known in Redis."""
        key = conversation.key
        self._owned[key] = Owned(n, pin.decode())
        view = self._brain.dispatcher.conversation(key)
        if view is not None and (was_ours or view.num_open_turns):
            return  # what is known here is newer
        if pin or row:
            self._let_go(key, pin)
            self._restore(conversation, pin.decode(), unpacked(row))

    def _restore(
        self, conversation: Conversation, pin: str, saved: SavedConversation | None
    ) -> None:
        name, _, incarnation = pin.rpartition("@")
        worker = self._fleet.find(WorkerId(name)) if name else None
        is_there = worker is not None and (worker.incarnation or "") == incarnation
        if saved is not None:
            recall(conversation, saved)
            if saved.filed_at is not None:
                at = FiledAt(saved.filed_at, saved.filed_block, saved.filed_bytes)
                self._brain.conversations.refile(conversation, at)
        idle_s = 0.0 if saved is None else max(0.0, time.time() - saved.last_active_at_wall)
        self._brain.tell(
            ConversationRestored(
                conversation_id=conversation.key,
                decoder=WorkerId(name) if is_there else None,
                resident_tokens=saved.resident_tokens if saved is not None and is_there else 0,
                prompt_tokens=0 if saved is None else saved.prompt_tokens,
                num_turns=0 if saved is None else saved.num_turns,
                num_kv_transfers=0 if saved is None else saved.num_kv_transfers,
                idle_s=idle_s,
                tenant=conversation.tenant,
            )
        )

    # what became of conversations

    def _changed(self, key: str) -> None:
        self._dirty.add(key)
        self.wake()

    def news(self) -> list[tuple[Call, Then]]:
        calls = []
        wall_s = time.time() - self._brain.now()
        for _ in range(min(BATCH, len(self._dirty))):
            key = self._dirty.pop()
            view = self._brain.dispatcher.conversation(ConversationId(key))
            if view is not None and view.num_open_turns and not view.resident_tokens:
                continue  # its KV is on its way; it will change again
            if key not in self._owned and key not in self._unsure:
                self._give_up(key)
                continue
            self._unsure.discard(key)
            saved = describe(self._brain, self._fleet, key, wall_s)
            if saved is None:
                self._owned.pop(key, None)
            calls.append(self._write(key, saved))
        return calls

    def _write(self, key: str, saved: SavedConversation | None) -> tuple[Call, Then]:
        row, pin, at, block, num_bytes = b"", "", b"", b"", 0
        if saved is not None:
            row, at, block = packed(saved), saved.filed_at or b"", saved.filed_block or b""
            num_bytes = saved.filed_bytes
            if saved.worker is not None:
                pin = f"{saved.worker}@{saved.incarnation or ''}"
        call: Call = ("WRITE", (key, row, pin, at, block, num_bytes))
        return call, partial(self._written, key, has_row=saved is not None)

    def _written(self, key: str, answer: Any, *, has_row: bool) -> None:
        if answer is None:
            self._dirty.add(key)
            self._unsure.add(key)
            return
        is_ours, n, pin = answer
        if is_ours and has_row:
            self._owned[key] = Owned(n, pin.decode())
        elif not is_ours:
            self._owned.pop(key, None)
            self._let_go(ConversationId(key), pin)
            self._give_up(key)

    def _let_go(self, key: ConversationId, pin: bytes) -> None:
        """Free the KV of a conversation at rest that is pinned elsewhere."""
        view = self._brain.dispatcher.conversation(key)
        if view is None or view.decoder is None or view.num_open_turns:
            return
        if view.decoder != pin.decode().rpartition("@")[0]:
            self._fleet.release(view.decoder, key)

    def _give_up(self, key: str) -> None:
        """Another replica has this conversation: count it no longer, once no turn is open."""
        view = self._brain.dispatcher.conversation(ConversationId(key))
        if view is None or view.num_open_turns:
            return
        self._brain.tell(ConversationTaken(conversation_id=ConversationId(key)))
        self._forget(key)

    def _forget(self, key: str) -> None:
        conversation = self._brain.conversations.by_key(key)
        if conversation is not None:
            self._brain.conversations.forget_if_gone(conversation)

    # the other replicas

    def met(self) -> None:
        self._owned.clear()
        known = self._brain.conversations.keys()
        self._dirty.update(known)
        self._unsure.update(known)

    def hear(self, words: list[str]) -> None:
        if words[0] == "taken":
            owned, key = self._owned.get(words[2]), words[2]
            if owned is not None and owned.n < int(words[1]):
                del self._owned[key]
                self._brain.tell(ConversationTaken(conversation_id=ConversationId(key)))
                self._forget(key)
        elif words[0] == "ended" and words[1] != self.name:
            key = words[2]
            self._owned.pop(key, None)
            self._brain.tell(ConversationEnded(conversation_id=ConversationId(key)))
            self._forget(key)
            self._unsure.add(key)
            self._changed(key)
        else:
            super().hear(words)

    def beat(self) -> None:
        self.ask(self._peers.call(), self._peers.hear)


def _nowhere(block: bytes) -> tuple[int, ...]:
    return ()
