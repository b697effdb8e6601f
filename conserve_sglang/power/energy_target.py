"""Searches the caps at which an output token takes no more joules than it may. Pure.

Joules per output token over the cap are U-shaped: less power for slower steps, until idle power is
spread over too few tokens. So no cap can be computed; it is found by perturbation: once a window
one tier's ceiling goes down a step, that tier first whose SLO costs least. What did not help by
more than noise is taken back, and that tier is left alone for a while. Admission is no lever here:
fewer running turns make a token dearer.
"""

from dataclasses import dataclass

from conserve_sglang.power.observation import Observation, TierReading


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySettings:
    """The target in J per output token. A window is over after `window_s` and `min_tokens`.

    A ceiling rises again below target by `slack`; a step that gains less than `min_gain` is taken
    back, and its tier rests for `rest_s`.
    """

    j_per_output_token: float
    step_w: float = 25.0
    window_s: float = 10.0
    min_tokens: int = 64
    slack: float = 0.1
    min_gain: float = 0.005
    rest_s: float = 300.0


@dataclass(slots=True)
class _Trial:
    tier: str
    before_w: float
    j_per_token: float


class EnergyTarget:
    """Ceilings of the tiers' caps, and why the last of them moved."""

    def __init__(self, settings: EnergySettings) -> None:
        self._settings = settings
        self._ceilings: dict[str, float] = {}
        self._rests_until_s: dict[str, float] = {}
        self._trial: _Trial | None = None
        self._began_at_s: float | None = None
        self._joules = 0.0
        self._tokens = 0
        self._patience = 1
        self._num_good = 0
        self.j_per_token: float | None = None
        self.why = ""

    def ceiling_w(self, reading: TierReading) -> float:
        """The most a tier's cap may be."""
        return min(reading.base_w, self._ceilings.get(reading.tier, reading.base_w))

    def forget(self) -> None:
        """Begin anew: no ceilings, no window."""
        self._ceilings.clear()
        self._trial = None
        self._restart(None)

    def raise_for_slo(self, reading: TierReading, now_s: float) -> None:
        """A ceiling costs the SLO: it goes up a step, and rests."""
        if self.ceiling_w(reading) < reading.base_w:
            step_w = self._settings.step_w
            self._ceilings[reading.tier] = min(reading.base_w, self.ceiling_w(reading) + step_w)
            self._rests_until_s[reading.tier] = now_s + self._settings.rest_s
            self._trial = None
            self._restart(now_s)

    def observe(self, seen: Observation) -> None:
        """Count, and at the end of a window move one ceiling."""
        if self._began_at_s is None:
            self._restart(seen.at_s)
            return
        self._joules += seen.joules
        self._tokens += seen.output_tokens
        is_long = seen.at_s - self._began_at_s >= self._settings.window_s
        if is_long and self._tokens >= self._settings.min_tokens:
            self.j_per_token = self._joules / self._tokens
            self._decide(seen, self.j_per_token)
            self._restart(seen.at_s)

    # inside

    def _restart(self, now_s: float | None) -> None:
        self._began_at_s = now_s
        self._joules, self._tokens = 0.0, 0

    def _decide(self, seen: Observation, now_j: float) -> None:
        settings = self._settings
        if not self._has_gained(seen, now_j):
            return
        target = settings.j_per_output_token
        if now_j > target:
            self._num_good = 0
            self._lower(seen, now_j)
        elif now_j <= target * (1 - settings.slack):
            self._num_good += 1
            if self._num_good >= self._patience:
                self._num_good = 0
                self._raise(seen, now_j)
        else:
            self._num_good = 0

    def _has_gained(self, seen: Observation, now_j: float) -> bool:
        """Whether the last step helped; if not it is taken back, and this window ends so."""
        trial, self._trial = self._trial, None
        if trial is None or now_j <= trial.j_per_token * (1 - self._settings.min_gain):
            return True
        self._ceilings[trial.tier] = trial.before_w
        self._rests_until_s[trial.tier] = seen.at_s + self._settings.rest_s
        self.why = f"{now_j:.3g} J/token, no better than the {trial.j_per_token:.3g} before"
        return False

    def _lower(self, seen: Observation, now_j: float) -> None:
        for reading in seen.levers:
            if seen.at_s < self._rests_until_s.get(reading.tier, seen.at_s):
                continue
            before_w = self.ceiling_w(reading)
            # A ceiling above what is drawn changes nothing: begin where it bites.
            bites_w = min(before_w, reading.watts / reading.num_gpus)
            after_w = float(int(max(reading.least_w, bites_w - self._settings.step_w)))
            if after_w < reading.least_w or after_w >= before_w:
                continue
            self._ceilings[reading.tier] = after_w
            self._trial = _Trial(tier=reading.tier, before_w=before_w, j_per_token=now_j)
            self.why = f"{now_j:.3g} J/token, above {self._settings.j_per_output_token:g}"
            return

    def _raise(self, seen: Observation, now_j: float) -> None:
        for reading in reversed(seen.levers):
            ceiling_w = self.ceiling_w(reading)
            if ceiling_w < reading.base_w:
                after_w = min(reading.base_w, ceiling_w + self._settings.step_w)
                self._ceilings[reading.tier] = after_w
                self._patience = min(64, 2 * self._patience)  # each time later: no oscillation
                self.why = f"{now_j:.3g} J/token, well below {self._settings.j_per_output_token:g}"
                return
