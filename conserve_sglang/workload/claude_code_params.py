"""The parameters of `claude_code.py`: what `python -m bench.fit_claude_code` printed.

Quantiles of claude_code_agent_turns.csv: 24,100 turns with an answer of 360 sessions and 38
sub-agents, github.com/callanjfox/kv-cache-tester @ 94f6046, Apache-2.0, Copyright 2024 Callan Fox.
"""

from dataclasses import dataclass

from conserve_sglang.workload.quantiles import Quantiles

RESUMED_TOKENS = 60_000  # a session whose first prompt is longer goes on with an older one


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKind:
    """Conversations of one kind.

    `large_window_share` of them have a window of 1,000,000 tokens, the others of 200,000; one that
    begins beyond the small window has the large one. Prompts grow by `early_growth` in the first
    turns and then by `growth`.
    """

    num_turns: Quantiles
    first_input: Quantiles
    output: Quantiles
    early_growth: Quantiles
    growth: Quantiles
    tool_gap_s: Quantiles
    large_window_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """How histories change other than by growing.

    `share` of the later turns are rewritten: `length` times as long as before, with the first
    `kept` of the old prompt. Compaction comes at `compacted_at` tokens (`large_compacted_at` in the
    large window), or earlier in `early_share` of the turns, and leaves `compacted_to` tokens, of
    which the first `compacted_kept` are old.
    """

    share: float
    length: Quantiles
    kept: Quantiles
    early_share: float
    compacted_at: Quantiles
    large_compacted_at: Quantiles
    compacted_to: Quantiles
    compacted_kept: Quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaudeCodeParams:
    """Of all conversations `sub_agent_share` are sub-agents; of the others `resumed_share` go on
    with an older session. After `user_gap_share` of a session's answers the user comes next, after
    the others a tool; sub-agents have no user."""

    sub_agent_share: float
    resumed_share: float
    fresh: SessionKind
    resumed: SessionKind
    sub_agent: SessionKind
    rewriting: Rewriting
    user_gap_share: float
    user_gap_s: Quantiles


# fmt: off
LEVELS = (
    0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99,
    0.995, 0.999, 1.0,
)


def _spread(*values: float) -> Quantiles:
    return Quantiles(levels=LEVELS, values=values)


_OUTPUT = _spread(
    2, 63, 91, 106, 127, 148, 175, 214, 270, 361, 513, 634, 884, 1556, 2174, 2761, 3625, 4910,
    7711, 16_681
)
_TOOL_GAP_S = _spread(
    0, 2.38, 3.43, 4.04, 4.98, 5.95, 7.12, 8.71, 11.15, 15.33, 26.25, 40.29, 72.4, 161, 305.14,
    440.03, 653.87, 1407.3, 3291.3, 37_415
)

CLAUDE_CODE = ClaudeCodeParams(
    sub_agent_share=38 / 398,
    resumed_share=147 / 360,
    fresh=SessionKind(
        num_turns=_spread(
            3, 3, 6, 10, 19, 29, 48, 64, 75, 94, 122, 142, 157, 219, 247, 280, 330, 346, 439, 439
        ),
        first_input=_spread(
            9691, 10_244, 11_729, 13_135, 16_254, 17_432, 18_380, 19_167, 19_986, 20_860, 22_164,
            24_936, 29_831, 43_254, 48_296, 51_753, 57_018, 57_552, 58_946, 58_946
        ),
        output=_OUTPUT,
        early_growth=_spread(
            88, 98, 147, 183, 298, 430, 646, 1032, 2063, 3471, 6112, 8463, 13_330, 25_931, 33_061,
            42_420, 75_587, 86_827, 102_143, 133_084
        ),
        growth=_spread(
            41, 104, 154, 188, 272, 364, 473, 624, 846, 1209, 1857, 2422, 3277, 5241, 7249, 9047,
            12_066, 16_213, 58_072, 222_704
        ),
        tool_gap_s=_TOOL_GAP_S,
        large_window_share=0.080,
    ),
    resumed=SessionKind(
        num_turns=_spread(
            3, 3, 4, 4, 6, 12, 18, 23, 31, 44, 64, 98, 151, 234, 234, 234, 234, 234, 234, 234
        ),
        first_input=_spread(
            60_671, 61_513, 64_971, 66_456, 85_554, 89_509, 102_088, 120_601, 140_915, 196_713,
            261_922, 300_806, 407_992, 479_161, 560_844, 598_321, 716_145, 790_759, 790_759,
            790_759
        ),
        output=_OUTPUT,
        early_growth=_spread(
            93, 124, 151, 205, 314, 436, 623, 850, 1145, 1663, 2842, 4707, 6178, 8914, 11_961,
            14_633, 17_395, 25_080, 109_815, 109_815
        ),
        growth=_spread(
            -136, 125, 162, 214, 296, 419, 526, 655, 859, 1168, 1677, 1985, 2879, 4715, 7019, 8313,
            11_356, 16_706, 20_433, 223_989
        ),
        tool_gap_s=_TOOL_GAP_S,
        large_window_share=0.260,
    ),
    sub_agent=SessionKind(
        num_turns=_spread(
            2, 2, 4, 5, 7, 8, 10, 11, 12, 13, 15, 18, 22, 24, 24, 24, 24, 24, 24, 24
        ),
        first_input=_spread(
            8868, 8868, 9008, 9072, 9869, 9933, 10_173, 10_441, 10_792, 11_687, 11_738, 13_309,
            13_368, 18_251, 18_251, 18_259, 18_259, 18_259, 18_259, 18_259
        ),
        output=_spread(
            62, 81, 108, 123, 167, 192, 221, 238, 260, 290, 329, 377, 475, 3093, 3422, 3627, 4047,
            4765, 6043, 6043
        ),
        early_growth=_spread(
            159, 176, 333, 490, 883, 1257, 1983, 2877, 4062, 6509, 11_621, 16_697, 21_646, 49_250,
            57_598, 69_539, 71_951, 72_266, 72_266, 72_266
        ),
        growth=_spread(
            179, 195, 336, 424, 577, 855, 1167, 1773, 2385, 3286, 4549, 5670, 6924, 9366, 9632,
            10_425, 10_901, 34_005, 57_391, 57_391
        ),
        tool_gap_s=_spread(
            0.68, 1.32, 1.88, 2.16, 2.63, 3.09, 3.36, 3.74, 4.2, 4.86, 6.81, 14.78, 27.9, 44.32,
            57.58, 67.62, 72.42, 84.86, 133.04, 133.04
        ),
        large_window_share=0.0,
    ),
    rewriting=Rewriting(
        share=354 / 23_301,
        length=_spread(
            0.50218, 0.52909, 0.67099, 0.79506, 0.96483, 0.99568, 1.0028, 1.0044, 1.0095, 1.0203,
            1.0569, 1.0827, 1.3033, 2.3365, 3.2643, 3.6751, 4.2812, 5.1458, 14.093, 14.093
        ),
        kept=_spread(
            0, 0, 0, 0.0341, 0.049521, 0.080622, 0.10034, 0.12768, 0.15529, 0.21786, 0.35537,
            0.41893, 0.54021, 0.90978, 0.95816, 0.96704, 0.98084, 0.98594, 0.98746, 0.98746
        ),
        early_share=23 / 23_301,
        compacted_at=Quantiles(
            levels=(0.0, 0.33, 0.67, 1.0), values=(142_891, 150_030, 162_455, 168_779)
        ),
        large_compacted_at=Quantiles(levels=(0.0, 1.0), values=(319_696, 894_371)),
        compacted_to=_spread(
            10_972, 10_972, 11_992, 15_549, 22_682, 26_239, 28_378, 31_274, 35_705, 38_485, 44_554,
            47_228, 49_363, 62_332, 74_116, 75_532, 89_216, 89_216, 89_216, 89_216
        ),
        compacted_kept=_spread(
            0, 0, 0, 8320, 12_288, 12_544, 12_608, 12_672, 14_976, 15_168, 15_424, 15_680, 15_744,
            16_128, 16_704, 22_144, 22_400, 22_400, 22_400, 22_400
        ),
    ),
    user_gap_share=1112 / 21_442,
    user_gap_s=_spread(
        0, 2, 3.73, 7.67, 46.07, 100.86, 173.39, 264.06, 431.4, 805.64, 1629.4, 2502.1, 3860.1,
        12_206, 15_050, 39_529, 46_356, 71_735, 77_360, 77_590
    ),
)
# fmt: on
