"""The main port: which request is a turn, which is about the router, and which is a mistake."""

from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

import msgspec

from conserve_sglang.core.tier import TierMap
from conserve_sglang.router import model_list
from conserve_sglang.router.access_log import AccessLog
from conserve_sglang.router.admission import TOO_MANY_BYTES
from conserve_sglang.router.anthropic import AnthropicCall, CountCall, MessagesCall
from conserve_sglang.router.choices import Choices
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.errand import Errand
from conserve_sglang.router.executor import Executor
from conserve_sglang.router.headers import (
    CONVERSATION_HEADER,
    DEADLINE_HEADER,
    END_HEADER,
    TIMEOUT_HEADER,
    USAGE_HEADER,
    ours_if_no_other_differs,
    split_request_headers,
)
from conserve_sglang.router.identity import History, name_in
from conserve_sglang.router.inquiry import Inquirer, fail
from conserve_sglang.router.keyring import CREDENTIALS, read_keyring
from conserve_sglang.router.payload import (
    BadBody,
    Endpoint,
    Payload,
    num_choices,
    read_payload,
    text_field,
)
from conserve_sglang.router.ports import PROBES, About, BrainPort, FleetView, Question, Subject
from conserve_sglang.router.problem import NO_DECODER, NO_WORKER, NOT_TRUSTED, STOPPING, Problem
from conserve_sglang.router.refusals import deadline_s, timeout_s, unknown_path, wrong_method
from conserve_sglang.router.request_ids import REQUEST_ID_HEADER, request_line
from conserve_sglang.router.request_reader import Request
from conserve_sglang.router.responses import ResponsesCall
from conserve_sglang.router.responses_about import not_found
from conserve_sglang.router.responses_reading import serve_response
from conserve_sglang.router.sent import Sent
from conserve_sglang.router.translation import Translation
from conserve_sglang.router.turn import Turn
from conserve_sglang.router.usage_note import note_for
from conserve_sglang.workers.upstream import Headers

_TURNS = {endpoint.value.encode(): endpoint for endpoint in Endpoint}
_MESSAGES = b"/v1/messages"
_RESPONSES = b"/v1/responses"
_TRANSLATED = (_MESSAGES, _RESPONSES)
_COUNT_TOKENS = b"/v1/messages/count_tokens"
_CONVERSATIONS = b"/v1/conversations/"
_PLACES = {b"/v1/place": Subject.PLACE, b"/v1/place/report": Subject.PLACED}
_SERVED = (*_TURNS, *_TRANSLATED, _COUNT_TOKENS, *_PLACES)
_ABOUT_CONVERSATION = {
    "GET": Subject.CONVERSATION,
    "HEAD": Subject.CONVERSATION,
    "DELETE": Subject.END,
}
_JSON = [(b"content-type", b"application/json")]


class Front:
    """Serves the requests of all client connections; with a key file, of those that have a key."""

    def __init__(
        self,
        tier_map: TierMap,
        executor: Executor,
        brain: BrainPort,
        fleet: FleetView,
        about: About,
        access: AccessLog | None = None,
    ) -> None:
        self._model = tier_map.model
        self._settings = tier_map.router
        self._turn_timeout_s = tier_map.router.turn_timeout_s
        self._reads_energy = tier_map.energy is not None
        self._executor = executor
        self._hashing = brain.hashing
        self._salts = brain.salts
        self._keep_response = brain.keep_response
        self._fleet = fleet
        self._about = about
        self._access = access
        self.keyring = read_keyring(self._settings.auth)
        has_keys = self.keyring is not None or self._settings.worker_api_key_env is not None
        self._stopped = CREDENTIALS if has_keys else frozenset()
        self._known_models = {
            msgspec.json.encode(name) for name in (self._model.served_name, self._model.path)
        }
        self.is_stopping = False  # nothing new is begun
        self._about_router: dict[bytes, Callable[[ClientConnection], None]] = {
            model_list.PATH: self._models,
        }

    def serve(self, request: Request, client: ClientConnection) -> None:
        """Answer a request, now or later."""
        path = request.target.partition(b"?")[0]
        try:
            probe = PROBES.get(path)
            if probe is not None:
                client.last_headers = None  # whoever asks
                request.keeps_alive &= not self.is_stopping
                self._plain(partial(self._probe, probe), request, client)
                return
            if self.is_stopping and self._is_too_late(path, request, client):
                return
            problem = self.let_in(request.target, request.headers, client)
            if problem is not None:
                client.answer_problem(problem)
                return
            client.request_line = request_line(client.last_split[1].get(REQUEST_ID_HEADER))
            endpoint = _TURNS.get(path)
            if endpoint is None:
                self._other(path, request, client)
            elif request.method == "POST":
                self._turn(read_payload(endpoint, request.body, client.salt), client)
            else:
                client.answer_problem(wrong_method(request.method, "POST"))
        except BadBody as error:
            client.answer_problem(error.problem)
        except Exception:
            fail(client)

    def let_in(self, target: bytes, headers: Headers, client: ClientConnection) -> Problem | None:
        """Find out whose a request is, and take its headers apart; why not, if it may not in."""
        keyring, last = self.keyring, client.last_headers
        if last is not None and client.judged_by is keyring:  # most clients repeat themselves
            if headers == last:
                return None
            ours = ours_if_no_other_differs(headers, last)
            if ours is not None:
                client.last_split = client.last_split[0], ours
                client.last_headers = headers
                return None
        client.last_headers = None
        if keyring is not None:
            verdict = keyring.tenant_of(headers)
            if isinstance(verdict, Problem):
                self._executor.meter.metrics.num_unauthorized += 1
                _give_voice(target, client)
                return verdict
            client.tenant = verdict
            client.salt = self._salts.of(verdict.tenant_id)
        client.last_split = split_request_headers(headers, self._stopped)
        client.judged_by = keyring
        client.last_headers = headers
        return None

    def _is_too_late(self, path: bytes, request: Request, client: ClientConnection) -> bool:
        """Refuse what would begin something; the rest is served, and then its connection closed."""
        request.keeps_alive = False
        if request.method != "POST" or _PLACES.get(path) is Subject.PLACED:
            return False
        client.last_headers = None  # not looked at
        _give_voice(path, client)
        client.answer_problem(STOPPING)
        return True

    # turns

    def _translated(self, path: bytes, request: Request, client: ClientConnection) -> None:
        """A turn of another API than the workers'."""
        messages_call = MessagesCall(client.request_id) if path == _MESSAGES else None
        client.voice = messages_call
        if request.method != "POST":
            client.answer_problem(wrong_method(request.method, "POST"))
        elif messages_call is not None:
            chat = messages_call.read(request.body)
            self._translated_turn(messages_call, chat, client)
        else:
            self._create_response(request.body, client)

    def _translated_turn(
        self, translation: Translation, chat: bytes, client: ClientConnection
    ) -> None:
        payload = read_payload(Endpoint.CHAT, chat, client.salt)
        payload.translation = translation
        payload.conversation_name = translation.conversation_name
        self._turn(payload, client)

    def _create_response(self, body: bytes, client: ClientConnection) -> None:
        """A Responses turn; where it goes on from another, when the brain has told its history."""
        tenant = client.tenant.tenant_id
        is_kept = self._settings.stored_responses_mb > 0
        call = ResponsesCall(
            partial(self._keep_response, tenant) if is_kept else None,
            keeps_object=self._settings.response_objects_mb > 0,
        )
        client.voice = call
        call.read(body)
        if call.previous is None:
            self._translated_turn(call, call.chat(), client)
        elif is_kept:
            inquirer = client.asker = Inquirer(client, partial(self._go_on, call, client))
            name = call.previous.encode("utf-8", "replace")
            self._about.ask(Question(Subject.HISTORY, tenant, name), inquirer.hear)
        else:
            why = "this router stores none, as router.stored_responses_mb is 0"
            raise BadBody(not_found(call.previous, why))

    def _go_on(self, call: ResponsesCall, client: ClientConnection, history: bytes) -> None:
        client.asker = None
        try:
            if not client.take_on(len(history)):
                raise BadBody(TOO_MANY_BYTES)
            self._translated_turn(call, call.chat(history), client)
        except BadBody as error:
            client.answer_problem(error.problem)
        except Exception:
            fail(client)

    def _turn(self, payload: Payload, client: ClientConnection) -> None:
        self._check_model(payload)
        num = num_choices(payload)
        if not self._fleet.may_decode:
            client.answer_problem(NO_DECODER)
            return
        executor = self._executor
        forward, ours = client.last_split
        turn = Turn(executor, executor.next_turn_id(), client)
        turn.payload = payload
        if num > 1:
            turn.choices = Choices(num, payload.fields)
        elif payload.is_stream and self._settings.max_continuations:
            turn.sent = Sent(payload.endpoint)
        turn.request_line = client.request_line
        turn.forward = forward + turn.request_line
        if self._access is not None:
            turn.peer = client.peer
        turn.tenant = client.tenant.tenant_id
        turn.name = name_in(ours, payload, by_user=self._settings.identify_by_user_field)
        if turn.name is None and self._settings.identify_by_history:
            turn.history = History(payload, turn.tenant, self._hashing)
        turn.ends_conversation = END_HEADER in ours
        if USAGE_HEADER in ours:
            turn.usage_note = note_for(ours[USAGE_HEADER], payload, self._reads_energy)
        if DEADLINE_HEADER in ours:
            turn.deadline_s = deadline_s(ours[DEADLINE_HEADER])
        if self._turn_timeout_s is not None or TIMEOUT_HEADER in ours:
            executor.bound(turn, timeout_s(ours.get(TIMEOUT_HEADER), self._turn_timeout_s))
        payload.fields = {}  # what was to be read is read
        client.asker = turn
        executor.arrive(turn)

    def _check_model(self, payload: Payload) -> None:
        raw = payload.fields.get("model")
        if raw is None or bytes(raw) in self._known_models:
            return
        name = text_field(payload.fields, "model")
        served = self._model.served_name
        # An adapter of the model is asked for as MODEL:ADAPTER.
        if name is not None and name.partition(":")[0] not in (served, self._model.path):
            raise BadBody(model_list.unknown_model(name, served))

    def _count_tokens(self, request: Request, client: ClientConnection) -> None:
        call = client.voice = CountCall(client.request_id)
        if request.method != "POST":
            client.answer_problem(wrong_method(request.method, "POST"))
            return
        payload = read_payload(Endpoint.CHAT, call.read(request.body))
        self._check_model(payload)
        worker = next((each for each in self._fleet.workers() if each.is_up), None)
        if worker is None:
            client.answer_problem(NO_WORKER)
            return
        client.asker = errand = Errand(client)
        errand.count_tokens(worker.pool, payload, call)

    # about the router

    def _other(self, path: bytes, request: Request, client: ClientConnection) -> None:
        told = self._about_router.get(path)
        if told is not None:
            self._plain(told, request, client)
        elif path in _TRANSLATED:
            self._translated(path, request, client)
        elif path.startswith(_CONVERSATIONS):
            self._conversation(request.method, path[len(_CONVERSATIONS) :], client)
        elif path in _PLACES:
            self._place(_PLACES[path], request, client)
        elif path == _COUNT_TOKENS:
            self._count_tokens(request, client)
        elif path.startswith(model_list.PATH + b"/"):
            name = unquote_to_bytes(path[len(model_list.PATH) + 1 :]).decode("utf-8", "replace")
            self._plain(partial(self._model_named, name), request, client)
        elif path.startswith(_RESPONSES + b"/"):
            serve_response(path[len(_RESPONSES) + 1 :], request, client, self._about)
        else:
            _give_voice(path, client)
            client.answer_problem(unknown_path(path, _SERVED))

    def _plain(
        self, told: Callable[[ClientConnection], None], request: Request, client: ClientConnection
    ) -> None:
        if request.method in ("GET", "HEAD"):
            told(client)
        else:
            client.answer_problem(wrong_method(request.method, "GET, HEAD"))

    def _probe(self, subject: Subject, client: ClientConnection) -> None:
        self._inquire(Question(subject, is_brief=self.keyring is not None), client)

    def _inquire(self, question: Question, client: ClientConnection) -> None:
        inquirer = client.asker = Inquirer(client)
        self._about.ask(question, inquirer.hear)

    def _models(self, client: ClientConnection) -> None:
        body = model_list.listing(self._model.served_name)
        client.answer(200, _JSON, msgspec.json.encode(body))

    def _model_named(self, name: str, client: ClientConnection) -> None:
        served = self._model.served_name
        if name in (served, self._model.path):
            client.answer(200, _JSON, msgspec.json.encode(model_list.describe(served)))
        else:
            client.answer_problem(model_list.unknown_model(name, served))

    def _conversation(self, method: str, escaped: bytes, client: ClientConnection) -> None:
        subject = _ABOUT_CONVERSATION.get(method)
        if subject is None:
            client.answer_problem(wrong_method(method, "GET, HEAD, DELETE"))
            return
        tenant = client.tenant.tenant_id
        self._inquire(Question(subject, tenant, unquote_to_bytes(escaped)), client)

    def _place(self, subject: Subject, request: Request, client: ClientConnection) -> None:
        if request.method != "POST":
            client.answer_problem(wrong_method(request.method, "POST"))
        elif not client.tenant.may_place:
            client.answer_problem(NOT_TRUSTED)
        else:
            name = client.last_split[1].get(CONVERSATION_HEADER, b"")
            tenant = client.tenant.tenant_id
            line = client.request_line
            question = Question(subject, tenant, name, request.body, request_line=line)
            self._inquire(question, client)


def _give_voice(path: bytes, client: ClientConnection) -> None:
    """Have errors told in the shape of the API that the path belongs to."""
    if path.startswith(_MESSAGES):
        client.voice = AnthropicCall(client.request_id)
