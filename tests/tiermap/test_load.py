"""What a tier map may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest

from conserve_sglang.core.errors import TierMapError
from conserve_sglang.core.tier import RouterSettings, TierMap
from conserve_sglang.core.worker import Role
from conserve_sglang.tiermap import load_tier_map, parse_tier_map

SMALL = """
schema_version: 1
model: {path: ./model}
tiers:
  - {name: p, role: prefill, gpu: A40, gpu_ids: [0], base_port: 31000, bootstrap_base_port: 31900}
  - {name: d, role: decode, gpu: L4, count: 2, gpu_ids: [1, 2], base_port: 31100}
policy: {name: conserve, params: {max_local_append_tokens: 512}}
"""


def parse(text: str) -> TierMap:
    return parse_tier_map(text, source="maps/x.yaml", folder=Path("/maps"))


def refusal(text: str) -> str:
    with pytest.raises(TierMapError) as caught:
        parse(text)
    return str(caught.value)


def test_workers_follow_their_tier_in_order() -> None:
    workers = parse(SMALL).workers
    assert [(w.worker_id, w.port, w.bootstrap_port, w.gpu_ids) for w in workers] == [
        ("p-0", 31000, 31900, (0,)),
        ("d-0", 31100, None, (1,)),
        ("d-1", 31101, None, (2,)),
    ]
    assert [w.role for w in workers] == [Role.PREFILL, Role.DECODE, Role.DECODE]


def test_tensor_parallel_workers_get_tp_gpus_each() -> None:
    tier_map = parse(SMALL.replace("gpu_ids: [1, 2]", "tp: 2, gpu_ids: [1, 2, 3, 4]"))
    assert [w.gpu_ids for w in tier_map.workers] == [(0,), (1, 2), (3, 4)]


def test_what_is_left_out_has_the_defaults_of_the_core() -> None:
    tier_map = parse(SMALL)
    assert tier_map.router == RouterSettings()
    assert tier_map.power_budget_w is None
    assert tier_map.slo.ttfet_s is None


@pytest.mark.parametrize(
    ("path", "resolved", "served"),
    [
        ("./model", "/maps/model", "model"),
        ("../a/b", "/a/b", "b"),
        ("/data/m", "/data/m", "m"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_a_model_folder_is_resolved_against_the_file(path: str, resolved: str, served: str) -> None:
    model = parse(SMALL.replace("./model", path)).model
    assert (model.path, model.served_name) == (resolved, served)


WRONG = {
    "unknown field": (
        ("role: decode,", "role: decode, powercap_w: 200,"),
        "maps/x.yaml: tiers[1].powercap_w: unknown field; did you mean power_cap_w?",
    ),
    "unknown field, nothing like it": (
        ("schema_version: 1", "schema_version: 1\nzzz: 1"),
        "maps/x.yaml: zzz: unknown field; known here: energy, energy_budget_j_per_output_token,",
    ),
    "a token's budget without energy": (
        ("schema_version: 1", "schema_version: 1\nenergy_budget_j_per_output_token: 0.5"),
        "energy_budget_j_per_output_token: needs energy to be read; add energy: {}",
    ),
    "a budget and replicas": (
        (
            "schema_version: 1",
            "schema_version: 1\npower_budget_w: 500\nenergy: {}\n"
            "router: {state: {redis: 'redis://x'}}",
        ),
        "router.state.redis: replicas would each move the caps",
    ),
    "unknown router field": (
        ("schema_version: 1", "schema_version: 1\nrouter: {prot: 1}"),
        "maps/x.yaml: router.prot: unknown field; did you mean port?",
    ),
    "missing field": (("base_port: 31100", "tp: 1"), "maps/x.yaml: tiers[1].base_port: missing"),
    "wrong type": (
        ("count: 2", "count: two"),
        "maps/x.yaml: tiers[1].count: expected `int`, got `str`",
    ),
    "no workers": (("count: 2", "count: 0"), "tiers[1].count: expected `int` >= 1"),
    "negative cap": (
        ("count: 2", "count: 2, power_cap_w: -200"),
        "maps/x.yaml: tiers[1].power_cap_w: expected `float` > 0.0",
    ),
    "negative clock": (("count: 2", "count: 2, sm_clock_mhz: -1"), "tiers[1].sm_clock_mhz: expe"),
    "unknown role": (("role: decode", "role: decoder"), "tiers[1].role: invalid enum value"),
    "name with spaces": (("name: d,", "name: D x,"), "tiers[1].name: expected `str` matching"),
    "port out of range": (("31100", "70000"), "tiers[1].base_port: expected `int` <= 65535"),
    "last port out of range": (("31100", "65535"), "base_port: its 2 workers would pass port"),
    "unknown policy": (
        ("name: conserve", "name: conserv"),
        "maps/x.yaml: policy.name: no policy 'conserv'; did you mean conserve?",
    ),
    "unknown parameter": (
        ("max_local_append_tokens", "max_local_append"),
        "policy.params.max_local_append: unknown field; did you mean max_local_append_tokens?",
    ),
    "parameter of the wrong type": (
        ("append_tokens: 512", "append_tokens: many"),
        "maps/x.yaml: policy.params.max_local_append_tokens: expected `int`, got `str`",
    ),
    "parameter the policy refuses": (
        ("append_tokens: 512", "append_tokens: 0"),
        "policy.params: max_local_append_tokens must be at least 1",
    ),
    "duplicate tier": (("name: d,", "name: p,"), "tiers[1].name: 'p' is tiers[0]'s already"),
    "port collision": (
        ("31100", "31899"),
        "worker d-1: port 31900 on 127.0.0.1 is bootstrap server of p-0's already",
    ),
    "port of the router": (
        ("31100", "30000"),
        "worker d-0: port 30000 on 127.0.0.1 is router.port's already",
    ),
    "no decode tier": (
        ("role: decode", "role: mixed"),
        "tiers: the policy conserve needs a decode tier, and there is none",
    ),
    "too few GPUs": (("[1, 2]", "[1]"), "tiers[1].gpu_ids: 1 given; count x tp = 2 are needed"),
    "GPUs on a CPU tier": (("gpu: L4", "gpu: cpu"), "gpu_ids: 2 given; a CPU tier takes none"),
    "GPU of another tier": (
        ("[1, 2]", "[0, 2]"),
        "tiers[1].gpu_ids: GPU 0 of 127.0.0.1 is used by tiers[0] (p) too; share_gpus: true",
    ),
    "GPU twice in a tier": (("[1, 2]", "[1, 1]"), "GPU 1 stands here 2 times"),
    "no bootstrap port": ((", bootstrap_base_port: 31900", ""), "bootstrap_base_port: missing; a"),
    "bootstrap port of a decoder": (
        ("count: 2", "count: 2, bootstrap_base_port: 31950"),
        "tiers[1].bootstrap_base_port: a decode tier has none; remove it",
    ),
    "flag with dashes": (
        ("count: 2", "count: 2, sglang_flags: {--dtype: half}"),
        "tiers[1].sglang_flags.--dtype: write it without leading dashes",
    ),
    "flag with underscores": (
        ("count: 2", "count: 2, sglang_flags: {chunked_prefill_size: 1}"),
        "tiers[1].sglang_flags.chunked_prefill_size: write it as chunked-prefill-size",
    ),
    "flag that a field sets": (
        ("count: 2", "count: 2, sglang_flags: {port: 1}"),
        "tiers[1].sglang_flags.port: set by base_port; remove it here",
    ),
    "flag with a list": (
        ("count: 2", "count: 2, sglang_flags: {cuda-graph-bs: [1, 2]}"),
        "tiers[1].sglang_flags[...]: expected",
    ),
    "version of the future": (
        ("schema_version: 1", "schema_version: 2"),
        "maps/x.yaml: schema_version: 2 is not one this version reads; it reads 1",
    ),
    "version true": (("schema_version: 1", "schema_version: true"), "schema_version: True is not"),
    "no version": (("schema_version: 1", ""), "schema_version: missing; write schema_version: 1"),
    "key twice": (
        ("count: 2", "count: 2, count: 3"),
        "maps/x.yaml:6:48: not valid YAML: the key 'count' stands here twice",
    ),
    "broken YAML": (("gpu_ids: [1, 2]", "gpu_ids: [1, 2"), "not valid YAML"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_map_is_refused_with_file_and_field(name: str) -> None:
    (old, new), message = WRONG[name]
    assert old in SMALL
    text = refusal(SMALL.replace(old, new))
    assert message in text
    assert text.startswith("maps/x.yaml")


def test_all_broken_rules_are_named_at_once() -> None:
    text = refusal(SMALL.replace("[1, 2]", "[1]").replace("name: d,", "name: p,"))
    assert len(text.splitlines()) >= 2


@pytest.mark.parametrize(
    ("policy", "role", "is_fine"),
    [
        ("work-conserving", "mixed", True),
        ("work-conserving", "decode", False),
        ("work-conserving-tails", "mixed", False),
        ("colocated", "mixed", True),
        ("colocated", "decode", True),
        ("colocated", "prefill", False),
        ("round-robin", "mixed", True),
        ("round-robin", "decode", False),
        ("stock-pd", "decode", False),
    ],
)
def test_each_policy_needs_its_roles(policy: str, role: str, is_fine: bool) -> None:
    bootstrap = ", bootstrap_base_port: 32000" if role == "prefill" else ""
    text = f"""
schema_version: 1
model: {{path: m/m}}
tiers: [{{name: t, role: {role}, gpu: cpu, base_port: 31000{bootstrap}}}]
policy: {{name: {policy}}}
"""
    if is_fine:
        assert parse(text).policy.name == policy
    else:
        assert f"the policy {policy} needs" in refusal(text)


def test_gpus_may_be_shared_when_both_tiers_say_so() -> None:
    shared = SMALL.replace("[1, 2]", "[0, 2]").replace("role:", "share_gpus: true, role:")
    assert all(tier.share_gpus for tier in parse(shared).tiers)


@pytest.mark.parametrize("text", ["", "- 1", "hello", "1"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "a tier map is a mapping" in refusal(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TierMapError, match=r"nope\.yaml: cannot be read: No such file"):
        load_tier_map(tmp_path / "nope.yaml")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TierMapError, match="is not UTF-8"):
        load_tier_map(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::", "router-box"])
def test_control_port_beyond_the_loopback_needs_a_key(host: str) -> None:
    text = SMALL + f"router: {{control_host: '{host}'}}\n"
    assert f"router.control_host: {host} is no loopback address" in refusal(text)
    keyed = parse(SMALL + f"router: {{control_host: '{host}', admin_key_env: ADMIN_KEY}}\n")
    assert keyed.router.admin_key_env == "ADMIN_KEY"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.1.1", "localhost", "::1"])
def test_control_port_on_the_loopback_needs_none(host: str) -> None:
    assert parse(SMALL + f"router: {{control_host: '{host}'}}\n").router.control_host == host


@pytest.mark.parametrize("flag", ["api-key", "config"])
def test_workers_key_stands_in_one_place(flag: str) -> None:
    text = SMALL.replace("count: 2", f"count: 2, sglang_flags: {{{flag}: x}}")
    parse(text)
    text += "router: {worker_api_key_env: W_KEY}\n"
    assert f"tiers[1].sglang_flags.{flag}: set by router.worker_api_key_env" in refusal(text)


def test_name_of_a_variable_is_no_key() -> None:
    assert "router.worker_api_key_env" in refusal(SMALL + "router: {worker_api_key_env: sk-12}\n")


def test_key_file_is_found_from_the_tier_maps_folder() -> None:
    for name, path in (("keys.yaml", "/maps/keys.yaml"), ("/etc/keys.yaml", "/etc/keys.yaml")):
        tier_map = parse(SMALL + f"router: {{auth: {{keys_file: {name}}}}}\n")
        assert tier_map.router.auth.keys_file == path
    assert "router.auth.key_file: unknown field; did you mean keys_file?" in refusal(
        SMALL + "router: {auth: {key_file: x}}\n"
    )


def test_certificates_are_found_from_the_tier_maps_folder() -> None:
    router = parse(
        SMALL + "router: {tls: {cert_file: c.pem, key_file: ../k.pem}, worker_tls: {ca_file: a}}\n"
    ).router
    assert router.tls is not None
    assert (router.tls.cert_file, router.tls.key_file) == ("/maps/c.pem", "/k.pem")
    assert router.worker_tls is not None
    assert (router.worker_tls.ca_file, router.worker_tls.verify) == ("/maps/a", True)
    assert "router.tls.key_file: missing" in refusal(SMALL + "router: {tls: {cert_file: c}}\n")


def test_workers_with_a_certificate_need_a_router_that_speaks_tls() -> None:
    text = SMALL.replace("count: 2", "count: 2, sglang_flags: {ssl-certfile: c, ssl-keyfile: k}")
    assert "tiers[1].sglang_flags.ssl-certfile: these workers speak TLS" in refusal(text)
    parse(text + "router: {worker_tls: {}}\n")
