"""Conversations through the router on real SGLang: what they say, where they run, what moves."""

import itertools
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.sglang.cluster import MODEL_NAME, Cluster
from tests.sglang.decoder import Decoder, ids
from tests.sglang.routers import Router, running_router, worker_name
from tests.sglang.rule import answered_once
from tests.sglang.talk import ChatTalk, Reply, TokenTalk, post

pytestmark = pytest.mark.sglang

MAX_LOCAL_APPEND = 1024
LEAVERS_TOKENS = 20_000  # an answer nobody hangs up on takes minutes
LEAVERS_LIMIT_S = 15.0  # SGLang looks every 4 s whether the client of a whole answer is there
CONSERVE = {"name": "conserve", "params": {"max_local_append_tokens": MAX_LOCAL_APPEND}}


@pytest.fixture(scope="module")
def router(cluster: Cluster) -> Iterator[Router]:
    with running_router(cluster, "router", CONSERVE) as running:
        yield running


def rooms(cluster: Cluster) -> int:
    """KV transfers so far, counted where they are sent."""
    path = cluster.servers["p0"].transfer_log
    lines = path.read_text().splitlines() if path.exists() else []
    return len({json.loads(line)["room"] for line in lines})


def requests_at(cluster: Cluster, server: str) -> int:
    """Turns a server has been asked for, by its own access log."""
    log = cluster.servers[server].log_path.read_text(errors="replace")
    turns = ("/generate", "/v1/chat/completions", "/v1/completions")
    return sum(log.count(f'"POST {path} ') for path in turns)


def kv_held(router: Router, server: str) -> float:
    """KV tokens of a server, resident by the router's ledger."""
    labels = f'{{role="decode",tier="{server}",worker="{worker_name(server)}"}}'
    return router.loads()[f"conserve_worker_kv_resident_tokens{labels}"]


def named(name: str) -> dict[str, str]:
    return {"x-conversation-id": name}


def assert_covers(reply: Reply, before: Reply) -> None:
    """The whole previous context was cached, but for the last token, which has no KV yet."""
    assert reply.cached_tokens >= before.prompt_tokens + before.output_tokens - 1


def test_token_turns_equal_the_stock_server_and_the_kv_moves_once(
    router: Router, cluster: Cluster
) -> None:
    ours, stock = TokenTalk(router.url, named("tokens")), TokenTalk(cluster.url("ref"))
    transfers, asked = rooms(cluster), requests_at(cluster, "p0")
    replies = []
    for number, length in enumerate([1500, 70, 700, 5, 67]):
        append = ids(length, number)
        replies.append(ours.turn(append))
        assert replies[-1].output == stock.turn(append).output, f"turn {number + 1}"
    assert [reply.prefiller for reply in replies] == [worker_name("p0"), None, None, None, None]
    assert len({reply.decoder for reply in replies}) == 1
    for before, after in itertools.pairwise(replies):
        assert_covers(after, before)
    assert rooms(cluster) - transfers == 1
    assert requests_at(cluster, "p0") - asked == 1


def test_chat_turns_are_found_by_their_history_and_equal_the_stock_server(
    router: Router, cluster: Cluster
) -> None:
    ours, stock = ChatTalk(router.url), ChatTalk(cluster.url("ref"))
    transfers, asked = rooms(cluster), requests_at(cluster, "p0")
    replies = []
    for text in ["Tell me of the sea. " * 40, "And of the moon?", "Why?", "Go on.", "Thank you."]:
        replies.append(ours.turn(text))
        assert replies[-1].output == stock.turn(text).output
    assert [reply.reason for reply in replies] == ["first_turn"] + ["pinned"] * 4
    assert len({reply.headers["x-conversation-id"] for reply in replies}) == 1
    assert rooms(cluster) - transfers == 1
    assert requests_at(cluster, "p0") - asked == 1
    for before, after in itertools.pairwise(replies):
        assert_covers(after, before)


def test_sixteen_conversations_at_once_stay_on_their_pins(router: Router, cluster: Cluster) -> None:
    transfers, asked = rooms(cluster), requests_at(cluster, "p0")

    def play(number: int) -> tuple[list[Reply], list[Any]]:
        ours = TokenTalk(router.url, named(f"many-{number}"))
        stock = TokenTalk(cluster.url("ref"))
        appends = [ids(200 + 10 * number, 1000 + number), ids(30, 2000 + number), ids(9, number)]
        replies = [ours.turn(append) for append in appends]
        return replies, [stock.turn(append).output for append in appends]

    with ThreadPoolExecutor(16) as pool:
        played = list(pool.map(play, range(16)))
    for replies, expected in played:
        assert [reply.output for reply in replies] == expected
        assert len({reply.decoder for reply in replies}) == 1
        assert [reply.reason for reply in replies] == ["first_turn", "pinned", "pinned"]
    assert {replies[0].decoder for replies, _ in played} == {worker_name("d0"), worker_name("d1")}
    # The key is KV tokens, not conversations: the decoders end within two conversations' worth.
    held = [kv_held(router, decoder) for decoder in ("d0", "d1")]
    assert abs(held[0] - held[1]) < 2 * 450
    assert rooms(cluster) - transfers == 16
    assert requests_at(cluster, "p0") - asked == 16


def test_two_clients_with_the_same_opening_stay_two_conversations(router: Router) -> None:
    first, second = ChatTalk(router.url), ChatTalk(router.url)
    opening = [talk.turn("The same words from two clients.") for talk in (first, second)]
    assert opening[0].output == opening[1].output
    names = [talk.turn(f"From here on I am client {talk is first}.") for talk in (first, second)]
    assert len({reply.headers["x-conversation-id"] for reply in names}) == 2
    assert [reply.reason for reply in names] == ["pinned", "pinned"]


def test_json_schema_turn_on_the_decoder(router: Router, cluster: Cluster) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "pick", "schema": schema}}
    ours, stock = ChatTalk(router.url), ChatTalk(cluster.url("ref"))
    for talk in (ours, stock):
        talk.turn("We shall talk of colors.")
    reply = ours.turn("Pick one.", response_format=wanted, max_tokens=64)
    assert reply.reason == "pinned"
    assert json.loads(reply.output)["color"] in {"red", "green"}
    assert reply.output == stock.turn("Pick one.", response_format=wanted, max_tokens=64).output


def test_append_over_the_limit_goes_through_phase_one(router: Router, cluster: Cluster) -> None:
    ours, stock = TokenTalk(router.url, named("large")), TokenTalk(cluster.url("ref"))
    transfers, asked = rooms(cluster), requests_at(cluster, "p0")
    appends = [ids(300, 1), ids(MAX_LOCAL_APPEND + 200, 2), ids(20, 3)]
    replies = [ours.turn(append) for append in appends]
    assert [r.output for r in replies] == [stock.turn(append).output for append in appends]
    assert [r.reason for r in replies] == ["first_turn", "large_append", "pinned"]
    assert replies[0].decoder == replies[1].decoder
    assert_covers(replies[2], replies[1])
    assert rooms(cluster) - transfers == 2
    assert requests_at(cluster, "p0") - asked == 2


def test_text_append_over_the_limit_is_refused_by_the_decoder_and_repaired(
    router: Router, cluster: Cluster
) -> None:
    """The router only derives the length of text; the decoder counts, and refuses."""
    ours, stock = ChatTalk(router.url), ChatTalk(cluster.url("ref"))
    for text in ["Short. " * 60, "x" * (MAX_LOCAL_APPEND + 300), "And now?"]:
        reply = ours.turn(text)
        assert reply.output == stock.turn(text).output
    assert reply.reason == "pinned"


def test_flushed_cache_is_noticed_and_repaired(router: Router, cluster: Cluster) -> None:
    ours, stock = TokenTalk(router.url, named("flushed")), TokenTalk(cluster.url("ref"))
    first = ours.turn(ids(600, 5))
    assert first.output == stock.turn(ids(600, 5)).output
    assert first.decoder is not None
    flush(cluster, first.decoder.removesuffix("-0"))
    again = ours.turn(ids(40, 6))
    assert again.output == stock.turn(ids(40, 6)).output
    assert (again.reason, again.prefiller) == ("prefix_missing", worker_name("p0"))
    after = ours.turn(ids(40, 7))
    assert after.output == stock.turn(ids(40, 7)).output
    assert after.reason == "pinned"


@pytest.mark.parametrize("prefix", [0, 900], ids=["queued-or-running", "chunked"])
def test_clients_that_leave_free_their_workers(
    router: Router, cluster: Cluster, prefix: int
) -> None:
    talks = [TokenTalk(router.url, named(f"leaver-{prefix}-{n}")) for n in range(6)]
    for number, talk in enumerate(talks):
        talk.turn(ids(100, 50 + number))
    for number, talk in enumerate(talks):
        sampling = {"temperature": 0, "max_new_tokens": LEAVERS_TOKENS, "ignore_eos": True}
        body = {
            "input_ids": talk.input_ids + ids(40 + prefix, number),
            "sampling_params": sampling,
            "stream": number < 4,
        }
        leave_after(router.url, body, talk.headers, 1 if number in {1, 3} else 0)
    wait_until_workers_are_idle(cluster)
    check = TokenTalk(router.url, named(f"leaver-{prefix}-0"), list(talks[0].input_ids))
    stock = TokenTalk(cluster.url("ref"), {}, list(talks[0].input_ids))
    assert check.turn(ids(30, 3)).output == stock.turn(ids(30, 3)).output
    wait_until_idle(router)


def test_turns_that_take_too_long_free_their_workers(router: Router, cluster: Cluster) -> None:
    talk = TokenTalk(router.url, named("too-long"))
    talk.turn(ids(100, 70))
    headers = {**talk.headers, "x-conserve-timeout-ms": "1500"}
    sampling = {"temperature": 0, "max_new_tokens": LEAVERS_TOKENS, "ignore_eos": True}
    asked = {"input_ids": talk.input_ids + ids(40, 71), "sampling_params": sampling}
    with httpx.Client(base_url=router.url, headers=headers, timeout=60) as client:
        whole = client.post("/generate", json=asked)
        streamed = client.post("/generate", json={**asked, "stream": True})
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "turn_timeout")
    last = json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert (streamed.status_code, last["error"]["code"]) == (200, "turn_timeout")
    wait_until_workers_are_idle(cluster)
    wait_until_idle(router)
    stock = TokenTalk(cluster.url("ref"), {}, list(talk.input_ids))
    after = talk.turn(ids(30, 72))
    assert after.output == stock.turn(ids(30, 72)).output
    assert after.reason == "pinned"


def leave_after(url: str, body: dict[str, Any], headers: dict[str, str], num_reads: int) -> None:
    """Ask for a stream and hang up, before or after the first bytes of the answer."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    connection.request("POST", "/generate", json.dumps(body), headers)
    if num_reads:
        connection.getresponse().read1(64)
    elif not body["stream"]:
        time.sleep(1.0)  # let it come as far as the decoder
    connection.close()


def wait_until_idle(router: Router) -> None:
    """Wait until no turn is open in the router."""
    deadline = time.monotonic() + 60
    while router.loads()["conserve_router_open_turns"]:
        assert time.monotonic() < deadline, "turns of clients that left are still open"
        time.sleep(0.1)


def wait_until_workers_are_idle(cluster: Cluster) -> None:
    """Wait until the workers themselves say that nothing runs or waits, before it is answered."""
    deadline = time.monotonic() + LEAVERS_LIMIT_S
    for name in ("p0", "d0", "d1"):
        while busy := num_requests(cluster, name):
            assert time.monotonic() < deadline, f"{busy} turns of clients that left are at {name}"
            time.sleep(0.2)


def num_requests(cluster: Cluster, server: str) -> int:
    """Requests that run or wait at a server, by its own load report."""
    load = Decoder(cluster, server).load()
    return int(load["num_running_reqs"]) + int(load["num_waiting_reqs"])


def flush(cluster: Cluster, server: str) -> None:
    """Empty a server's KV cache; it answers 400 while anything runs or has leaked."""
    for _ in range(60):
        request = urllib.request.Request(f"{cluster.url(server)}/flush_cache", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except urllib.error.HTTPError:
            time.sleep(0.5)
    pytest.fail(f"{server} never became idle")


def test_errors_are_clear_and_disturb_nothing(router: Router) -> None:
    chat = f"{router.url}/v1/chat/completions"
    hello = [{"role": "user", "content": "Hello"}]
    cases = [
        (chat, {"model": "gpt-x", "messages": hello}, 404, "tiny-qwen3"),
        (chat, b'{"model": "tiny-qwen3", "messages": [', 400, "JSON"),
        (f"{router.url}/v1/images", {}, 404, "/v1/images"),
        (f"{router.url}/generate", {"input_ids": ids(40_000, 1)}, 400, "Shorten the prompt"),
    ]
    for url, body, status, words in cases:
        got, answer, _ = post(url, body)
        assert got == status, answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert words in answer["error"]["message"]
    assert ChatTalk(router.url).turn("Still there?").output


def test_completion_turns_equal_the_stock_server(router: Router, cluster: Cluster) -> None:
    transfers, asked = rooms(cluster), requests_at(cluster, "p0")
    prompt = "Once upon a time there was a sailor. " * 20
    reasons = []
    for text in ["He went ashore.", "And then?", "The end."]:
        prompt += text
        body = {"model": MODEL_NAME, "prompt": prompt, "temperature": 0, "max_tokens": 16}
        status, ours, headers = post(f"{router.url}/v1/completions", body, named("completions"))
        assert status == 200, ours
        _, stock, _ = post(f"{cluster.url('ref')}/v1/completions", body)
        assert ours["choices"] == stock["choices"]
        assert ours["usage"]["completion_tokens"] == 16
        reasons.append(headers["x-conserve-reason"])
        prompt += ours["choices"][0]["text"]
    assert reasons == ["first_turn", "pinned", "pinned"]
    assert rooms(cluster) - transfers == 1
    assert requests_at(cluster, "p0") - asked == 1


def test_deleted_conversation_is_closed_on_its_decoder(router: Router, cluster: Cluster) -> None:
    ours, stock = TokenTalk(router.url, named("deleted")), TokenTalk(cluster.url("ref"))
    first = ours.turn(ids(300, 8))
    assert first.output == stock.turn(ids(300, 8)).output
    before = {name: sessions_closed(cluster, name) for name in ("d0", "d1")}
    url = f"{router.url}/v1/conversations/deleted"
    with urllib.request.urlopen(urllib.request.Request(url, method="DELETE")) as answer:
        assert json.load(answer) == {"id": "deleted", "object": "conversation", "deleted": True}
    deadline = time.monotonic() + 10
    while (now := {name: sessions_closed(cluster, name) for name in before}) == before:
        assert time.monotonic() < deadline, "no decoder was told"
        time.sleep(0.1)
    assert {worker_name(d): now[d] - before[d] for d in now} == {
        worker_name(d): int(worker_name(d) == first.decoder) for d in now
    }
    again = ours.turn(ids(20, 9))
    assert again.output == stock.turn(ids(20, 9)).output
    assert (again.reason, again.prefiller) == ("first_turn", worker_name("p0"))


def sessions_closed(cluster: Cluster, server: str) -> int:
    """How often a server was told that a conversation is over and took it, by its access log."""
    log = cluster.servers[server].log_path.read_text(errors="replace")
    return log.count('"POST /close_session HTTP/1.1" 200')


def test_stock_pd_policy_moves_the_kv_every_turn(cluster: Cluster) -> None:
    with running_router(cluster, "router-stock-pd", {"name": "stock-pd"}) as router:
        ours, stock = TokenTalk(router.url, named("stock")), TokenTalk(cluster.url("ref"))
        transfers = rooms(cluster)
        for number, length in enumerate([400, 30, 30]):
            append = ids(length, 700 + number)
            assert ours.turn(append).output == stock.turn(append).output
        assert rooms(cluster) - transfers == 3


def test_server_without_the_plugin_is_refused_as_a_decoder(cluster: Cluster) -> None:
    cluster.add("bare", "decode", env={"CONSERVE_LOCAL_PREFILL": "0"})
    try:
        with running_router(cluster, "router-bare", CONSERVE, decoders=("d0",)) as good:
            assert good.health()["status"] == "ok"
        only_bare = running_router(cluster, "router-bare", CONSERVE, decoders=("bare",))
        with pytest.raises(AssertionError, match="plugin"), only_bare:
            pass
    finally:
        cluster.remove("bare")


def test_killed_decoder_between_turns(router: Router, cluster: Cluster) -> None:
    talks = [TokenTalk(router.url, named(f"killed-{n}")) for n in range(4)]
    stocks = [TokenTalk(cluster.url("ref")) for _ in talks]
    first = [talk.turn(ids(300, 80 + n)) for n, talk in enumerate(talks)]
    assert {reply.decoder for reply in first} == {worker_name("d0"), worker_name("d1")}
    cluster.kill("d0")
    try:
        for number, (talk, stock) in enumerate(zip(talks, stocks, strict=True)):
            opening, append = ids(300, 80 + number), ids(25, 90 + number)
            assert first[number].output == stock.turn(opening).output
            wanted = stock.turn(append).output
            with answered_once():
                reply = talk.turn(append)
                assert reply.output == wanted
            assert reply.decoder == worker_name("d1")
            was_lost = first[number].decoder == worker_name("d0")
            assert reply.reason == ("decoder_lost" if was_lost else "pinned")
    finally:
        cluster.restart("d0")
    router.wait_for(d0="up")


def test_nothing_leaked(router: Router, cluster: Cluster) -> None:
    wait_until_idle(router)
    for server in ("p0", "d0", "d1"):
        flush(cluster, server)
        log = cluster.servers[server].log_path.read_text(errors="replace")
        assert "leak" not in log.lower()
        assert "Scheduler hit an exception" not in log
