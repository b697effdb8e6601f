"""A made-up profile whose numbers are easy to reckon with."""

from conserve_sglang.profiles import DecodePoint, PrefillPoint, Profile, Provenance

PREFILL_W, DECODE_W, IDLE_W = 300.0, 100.0, 40.0


def a_profile(*, has_watts: bool = True, idle_w: float | None = IDLE_W) -> Profile:
    """100 us per new token at 300 W; 10 ms + 1 us per KV token a decode step at 100 W."""
    return Profile(
        name="made-up",
        gpu="X1",
        model="some/model",
        dtype="bfloat16",
        engine="sglang",
        engine_version="0.5.23",
        graph_mode="none",
        provenance=Provenance(kind="estimated", source="made up for a test"),
        prefill=tuple(
            PrefillPoint(
                new_tokens=new,
                cached_tokens=cached,
                batch=batch,
                seconds=1e-4 * new * batch,
                watts=PREFILL_W if has_watts else None,
            )
            for batch in (1, 4)
            for cached in (0, 8000)
            for new in (1, 8000)
        ),
        decode=tuple(
            DecodePoint(
                batch=batch,
                kv_tokens=kv * batch,
                step_s=0.010 + 1e-6 * kv * batch,
                watts=DECODE_W if has_watts else None,
            )
            for batch in (1, 64)
            for kv in (1, 8000)
        ),
        tdp_w=350.0,
        idle_w=idle_w,
    )
