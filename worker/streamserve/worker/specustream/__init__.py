"""How deep to speculate: pure laws, what they learn, and the hook that carries them into vLLM's scheduler."""
