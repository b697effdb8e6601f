"""Profiles to test with."""

from dataclasses import replace

from conserve_sglang.profiles import (
    DecodePoint,
    PrefillPoint,
    Profile,
    Provenance,
    TransferPoint,
)

MEASURED = Provenance(
    kind="measured", source="a test", date="2026-11-21", machine={"gpu": "A40", "driver": "580"}
)
ESTIMATED = Provenance(kind="estimated", source="a line", error="+-25-30 % on power")


def a_profile(**changes: object) -> Profile:
    """Seconds and watts that are linear in every coordinate, so that what lies between is known."""
    profile = Profile(
        name="a40-tiny",
        gpu="A40",
        model="tiny",
        dtype="bfloat16",
        engine="sglang",
        engine_version="0.5.23",
        graph_mode="cuda-graph",
        power_cap_w=300.0,
        tdp_w=300.0,
        idle_w=76.0,
        kv_bytes_per_token=114_688,
        kv_capacity_tokens=308_448,
        chunk_tokens=2048,
        provenance=MEASURED,
        power_provenance=ESTIMATED,
        prefill=tuple(
            PrefillPoint(
                new_tokens=new,
                cached_tokens=cached,
                batch=batch,
                seconds=0.01 + 1e-5 * new + 1e-6 * cached + 1e-3 * batch,
                watts=200 + 0.01 * new,
                rel_ci=0.02,
            )
            for batch in (1, 4)
            for cached in (0, 1000, 4000)
            for new in (100, 1000, 2000)
        ),
        decode=tuple(
            DecodePoint(
                batch=batch,
                kv_tokens=batch * context,
                step_s=0.01 + 1e-5 * batch + 1e-6 * context,
                watts=100 + batch,
            )
            for batch in (1, 8, 16)
            for context in (100, 1000, 4000)
        ),
        transfer=tuple(
            TransferPoint(tokens=tokens, seconds=0.005 + 1e-6 * tokens)
            for tokens in (1, 1000, 10_000)
        ),
    )
    return replace(profile, **changes)  # type: ignore[arg-type]
