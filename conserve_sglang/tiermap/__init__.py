"""The deployment file, read strictly."""

from conserve_sglang.tiermap.load import load_tier_map, parse_tier_map
from conserve_sglang.tiermap.schema import json_schema, json_schema_text

__all__ = ["json_schema", "json_schema_text", "load_tier_map", "parse_tier_map"]
