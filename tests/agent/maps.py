"""A tier map whose energy is read."""


def a_map(interval_s: str | None = "1.0", *, energy: str = "", tier: str = "") -> str:
    """One prefiller and two decoders on the CPU; `energy` and `tier` are further YAML members."""
    asked = "" if interval_s is None else f"energy: {{interval_s: {interval_s}{energy}}}\n"
    return f"""
schema_version: 1
model: {{path: some/model}}
tiers:
  - {{name: p, role: prefill, gpu: cpu, base_port: 30100, bootstrap_base_port: 30150{tier}}}
  - {{name: d, role: decode, gpu: cpu, count: 2, base_port: 30200{tier}}}
{asked}"""


def a_gpu_map(energy: str) -> str:
    """One mixed worker on GPU 0; `energy` are YAML members of that section."""
    return f"""
schema_version: 1
model: {{path: some/model}}
tiers:
  - {{name: m, role: mixed, gpu: H100, gpu_ids: [0], base_port: 30100}}
policy: {{name: colocated}}
energy: {{{energy}}}
"""
