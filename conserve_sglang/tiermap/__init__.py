"""tiermap."""
