"""The vocabulary: ids, workers, tiers, local turns, latency definitions, errors."""
