"""The router: an OpenAI-compatible proxy that keeps each conversation on its decoder."""
