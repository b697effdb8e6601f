"""What each replica has on the workers: told to the others, and heard of them."""

from typing import Any

import msgspec

from conserve_sglang.core.ids import WorkerId
from conserve_sglang.dispatch import PeersReported
from conserve_sglang.router.brain import Brain
from conserve_sglang.state.shared import Call

LIFE_MS = 2000  # a replica not heard of for so long has nothing on the workers any more
_loads = msgspec.json.Decoder(dict[str, tuple[int, int]])


class Peers:
    """KV tokens and backlog by worker; the ledger leaves room for what the others have."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._known = PeersReported(kv_tokens={}, backlog_tokens={})

    def call(self) -> Call:
        """Says what this replica has; the answer is for `hear`."""
        loads = {
            load.worker_id: (load.resident_tokens + load.reserved_tokens, load.backlog_tokens)
            for load in self._brain.dispatcher.worker_loads()
            if load.is_up
        }
        return "LOADS", (msgspec.json.encode(loads), LIFE_MS)

    def hear(self, answer: Any) -> None:
        """What the others have; while nobody knows, it stays what it was."""
        if answer is None:
            return
        kv_tokens: dict[WorkerId, int] = {}
        backlog_tokens: dict[WorkerId, int] = {}
        for each in answer:
            for name, (kv, backlog) in _loads.decode(each).items():
                worker_id = WorkerId(name)
                kv_tokens[worker_id] = kv_tokens.get(worker_id, 0) + kv
                backlog_tokens[worker_id] = backlog_tokens.get(worker_id, 0) + backlog
        peers = PeersReported(kv_tokens=kv_tokens, backlog_tokens=backlog_tokens)
        if peers != self._known:
            self._known = peers
            self._brain.tell(peers)
