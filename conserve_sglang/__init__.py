"""Conversation-level prefill/decode disaggregation for SGLang.

core       the vocabulary: ids, workers, tiers, latency definitions, errors
policy     one question, one answer: where does this turn run
dispatch   the state machine that owns conversations, pins and the KV ledger
tiermap    the deployment file, read strictly
workers    one SGLang server seen from outside: its HTTP, its arguments, its PD fields
plugin     runs inside SGLang: decode servers prefill the appends of pinned conversations
telemetry  metrics and logs
router     the proxy in front of the workers
launcher   starts a tier map's workers and router, keeps them up, takes them down
"""

import logging

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
