"""A replica that shares stored responses, too: on the same line, after its conversations."""

from conserve_sglang.router.brain import Brain
from conserve_sglang.router.fleet import Fleet
from conserve_sglang.router.replica import Replica
from conserve_sglang.router.replica_line import Then
from conserve_sglang.router.responses_shared import SharedResponses
from conserve_sglang.state.shared import Call, SharedStore


class ReplicaWithResponses(Replica):
    """See `Replica` and `SharedResponses`."""

    desk: SharedResponses

    def __init__(
        self,
        store: SharedStore,
        brain: Brain,
        fleet: Fleet,
        max_history_bytes: int,
        life_s: float,
    ) -> None:
        super().__init__(store, brain, fleet)
        self.desk = SharedResponses(self, brain, max_history_bytes, life_s)

    def met(self) -> None:
        super().met()
        self.desk.met()

    def news(self) -> list[tuple[Call, Then]]:
        return [*super().news(), *self.desk.news()]

    def hear(self, words: list[str]) -> None:
        if not self.desk.hear(words):
            super().hear(words)

    async def stop(self) -> None:
        await self.desk.stop()
        await super().stop()
