"""Hooks that log what the scheduler computes, when, and for which turns: for energy's attribution.

Off unless `CONSERVE_PHASE_LOG` names a file. A decode step costs a clock read and a comparison of
two lists; a line is written for each extend batch, and for decode four times a second or when the
run of steps ends. A full file is renamed to `NAME.1`, over the one before, so two files are the
most. Format: `core/phase_log.py`. A disk that fails ends the log with one line in the server's own,
never the server.

Where SGLang overlaps host and device, a batch's end is when the host took its result, a little
after the device was done; the next one is logged to begin there.
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conserve_sglang.core.phase_log import (
    Phase,
    encode_decode,
    encode_extend,
    encode_launched,
    encode_opened,
    encode_work,
)
from conserve_sglang.core.turn_tag import tag_of
from conserve_sglang.plugin.inside import Inside

logger = logging.getLogger(__name__)

RUN_S = 0.25
"""Longest run of decode steps on one line."""
GAP_S = 0.01
"""Steps further apart than this are two runs: the device was idle between them."""
_TAG = "conserve_tag"
_PREFILL_MODE = "prefill"


class PhaseLog:
    """Writes one scheduler's log. `mode` is its disaggregation mode, as SGLang calls it."""

    def __init__(
        self, path: Path, max_bytes: int, mode: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._mode = mode
        self._clock = clock
        self._fd = -1
        self._number = 0
        self._size = 0
        self._last_end_s = 0.0
        self._run: _Run | None = None
        self._open()

    def launched(self, batch: Any) -> None:
        """A batch is about to go to the device."""
        mode = batch.forward_mode
        if mode.is_extend() and not mode.is_target_verify():
            self._write(encode_launched(self._clock()))

    def ending(self, batch: Any) -> None:
        """Its result is about to be taken: the last moment before answers grow."""
        mode = batch.forward_mode
        if not (mode.is_decode() or mode.is_target_verify()):
            return
        run, start_s = self._run, self._start_s(batch)
        if run is not None and (
            start_s - self._last_end_s > GAP_S or start_s - run.start_s > RUN_S
        ):
            self._close_run()
            run = None
        if run is None:
            run = self._run = _Run(start_s)
        if run.reqs != batch.reqs:
            run.join(batch.reqs)

    def ended(self, batch: Any) -> None:
        """Its result was taken."""
        mode = batch.forward_mode
        if mode.is_decode() or mode.is_target_verify():
            self._last_end_s = self._clock()
            if self._run is not None:
                self._run.num_steps += 1
                if all(req.finished() for req in batch.reqs):
                    self._close_run()  # perhaps nothing comes after it
        elif mode.is_extend():
            start_s = self._start_s(batch)
            self._close_run()
            self._last_end_s = end_s = self._clock()
            self._write(encode_extend(start_s, end_s, self._extend_works(batch)))

    def _start_s(self, batch: Any) -> float:
        """The device takes one batch after the other."""
        return max(float(batch.launch_ts), self._last_end_s)

    def _close_run(self) -> None:
        run, self._run = self._run, None
        if run is not None and run.num_steps:
            self._write(encode_decode(run.start_s, self._last_end_s, run.num_steps, run.works()))

    def _extend_works(self, batch: Any) -> list[list[Any]]:
        rows = zip(batch.reqs, batch.extend_lens, batch.prefix_lens, strict=False)
        return [
            encode_work(turn_of(req), self._phase(req), int(new), int(held))
            for req, new, held in rows
        ]

    def _phase(self, req: Any) -> Phase:
        """A later turn's prompt, prefilled where its conversation is, is an append."""
        if self._mode == _PREFILL_MODE:
            return Phase.PREFILL
        tag = turn_of(req)
        is_later = self._mode == "decode" if tag is None else tag[1] > 1
        return Phase.APPEND_PREFILL if is_later else Phase.PREFILL

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            return
        try:
            if self._size + len(line) > self._max_bytes:
                os.close(self._fd)
                self._open()
            os.write(self._fd, line)
            self._size += len(line)
        except OSError as error:
            self._fail(error)

    def _open(self) -> None:
        """Begin a file; what lay there is kept as the one before."""
        self._fd = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                os.replace(self._path, f"{self._path}.1")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            self._number += 1
            line = encode_opened(os.getpid(), self._clock(), self._number)
            os.write(self._fd, line)
            self._size = len(line)
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._fd = -1
        logger.error("The phase log %s ends here: %s. Serving goes on.", self._path, error)


class _Run:
    """Decode steps one right after the other."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.num_steps = 0
        self.reqs: list[Any] = []
        self._begun: dict[int, tuple[Any, int, int]] = {}

    def join(self, reqs: list[Any]) -> None:
        """The batch is made of these from now on."""
        self.reqs = reqs[:]
        for req in reqs:
            if id(req) not in self._begun:
                num_output = len(req.output_ids)
                self._begun[id(req)] = (req, num_output, len(req.origin_input_ids) + num_output)

    def works(self) -> list[list[Any]]:
        """Each request's new tokens, and the mean of its context over its steps."""
        rows = []
        for req, num_before, held in self._begun.values():
            new = max(0, len(req.output_ids) - num_before)
            rows.append(encode_work(turn_of(req), Phase.DECODE, new, held + new // 2))
        return rows


def turn_of(req: Any) -> tuple[str, int] | None:
    """Whose turn a request is, read once from its routing key."""
    known = req.__dict__
    if _TAG not in known:
        known[_TAG] = tag_of(req.routing_key)
    tag: tuple[str, int] | None = known[_TAG]
    return tag


class PhaseHooks:
    """The hook bodies; the log is opened by the first batch, and by one rank only."""

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._log: PhaseLog | None = None
        self._is_off = inside.settings.phase_log is None

    def run_batch(self, original: Any, scheduler: Any, batch: Any, *a: Any, **kw: Any) -> Any:
        """Note that an extend batch begins."""
        log = self._log or self._opened(scheduler)
        if log is not None:
            log.launched(batch)
        return original(scheduler, batch, *a, **kw)

    def process_batch_result(self, original: Any, scheduler: Any, batch: Any, result: Any) -> Any:
        """Log a batch once its result is there."""
        log = self._log
        if log is None:
            return original(scheduler, batch, result)
        log.ending(batch)
        done = original(scheduler, batch, result)
        log.ended(batch)
        return done

    def _opened(self, scheduler: Any) -> PhaseLog | None:
        settings = self._inside.settings
        if self._is_off or settings.phase_log is None:
            return None
        if not self._inside.adapter.is_first_rank(scheduler):
            self._is_off = True  # every rank computes the same batches: one tells of them
            return None
        mode = str(scheduler.disaggregation_mode.value)
        self._log = PhaseLog(Path(settings.phase_log), settings.phase_log_bytes, mode)
        return self._log
