"""What every hook body needs to know about the process it runs in."""

from dataclasses import dataclass

from conserve_sglang.plugin.adapter import Adapter
from conserve_sglang.plugin.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """The SGLang this process runs, and what it was told."""

    sglang_version: str
    adapter: Adapter
    settings: Settings
