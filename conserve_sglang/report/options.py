"""Fleets in words, and which of them are the same but for the policy."""

from collections.abc import Sequence
from dataclasses import fields

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning import Option, Request
from conserve_sglang.planning.plan import is_within, margins_of
from conserve_sglang.planning.problem import Config
from conserve_sglang.policy import PARAMS


def grouped(options: Sequence[Option]) -> list[list[Option]]:
    """Options that are the same fleet with the same figures, whatever the policy, together."""
    found: dict[object, list[Option]] = {}
    for option in options:
        score = option.score
        figures = (score.ttfet_s, score.tbt_s, score.e2e_s, score.mean_w, score.load_per_s)
        found.setdefault((*figures, *option.counts.items()), []).append(option)
    return list(found.values())


def name_of(config: Config) -> str:
    """A configuration in a few words."""
    words = [config.tier, config.role.value]
    if config.tp > 1:
        words.append(f"tp {config.tp}")
    if config.power_cap_w is not None:
        words.append(f"{config.power_cap_w:g} W")
    if config.sm_clock_mhz is not None:
        words.append(f"{config.sm_clock_mhz} MHz")
    return " ".join(words)


def workers_text(option: Option) -> str:
    """A fleet's workers in one line."""
    return " + ".join(f"{count} {name_of(config)}" for config, count in option.counts.items())


def brief(option: Option) -> str:
    """A fleet and its policy in one line."""
    return f"{workers_text(option)}, {option.policy.name}"


def params_text(policy: PolicyChoice) -> str:
    """A policy's parameters; nothing where all are as usual."""
    return ", ".join(f"{name} {value}" for name, value in policy.params.items())


def names_apart(options: Sequence[Option]) -> list[str]:
    """The name of each option's policy; of those that share it, with the parameters in which they
    differ, each in a line of its own."""
    found = []
    for option in options:
        own = _all_params(option.policy)
        others = [
            _all_params(one.policy) for one in options if one.policy.name == option.policy.name
        ]
        differing = [key for key in own if any(each[key] != own[key] for each in others)]
        words = [f"{key} {own[key]}" for key in differing]
        found.append("\n  ".join([option.policy.name, *words]))
    return found


def _all_params(policy: PolicyChoice) -> dict[str, object]:
    """With what a policy has where nothing is set."""
    usual = {field.name: field.default for field in fields(PARAMS[policy.name])}
    return {**usual, **policy.params}


def broken_text(request: Request, option: Option) -> str:
    """Which limits an option breaks; nothing where it keeps all."""
    if is_within(request, option):
        return ""
    names = [margin.name for margin in margins_of(request, option) if margin.share < 0]
    if names:
        return f"breaks {', '.join(names)}"
    if option.score.answered < request.targets.level:
        return f"only {option.score.answered:.1%} answered"
    return "breaks a limit" if option.score.is_steady else "falls behind with 5% more load"
