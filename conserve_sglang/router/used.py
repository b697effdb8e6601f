"""The energy of one conversation, as the agents billed it."""

KEPT_TURNS = 12


class Used:
    """What one conversation has used so far, by phase, and by turn for the last `KEPT_TURNS`."""

    __slots__ = ("first_turn", "is_attributed", "is_modelled", "phases", "since_s", "turns")

    def __init__(self, since_s: float = 0.0) -> None:
        self.since_s = since_s  # when the first was told, of the router's clock
        self.phases: dict[str, float] = {}
        self.turns: dict[int, float] = {}
        self.first_turn = 0  # the first that anything was told of
        self.is_modelled = False
        self.is_attributed = False

    @property
    def joules(self) -> float:
        """All of it."""
        return sum(self.phases.values())

    @property
    def origin(self) -> str:
        """Measured, or, if any of it is that, modelled."""
        return "modelled" if self.is_modelled else "measured"

    @property
    def split(self) -> str:
        """Own, or, if any of it was on a device shared with other workers, attributed."""
        return "attributed" if self.is_attributed else "own"

    def add(self, turn: int, phase: str, joules: float, origin: str, split: str) -> None:
        """Some more of it."""
        self.first_turn = min(self.first_turn or turn, turn)
        self.phases[phase] = self.phases.get(phase, 0.0) + joules
        self.turns[turn] = self.turns.get(turn, 0.0) + joules
        while len(self.turns) > KEPT_TURNS:
            del self.turns[min(self.turns)]
        self.is_modelled |= origin != "measured"
        self.is_attributed |= split != "own"
