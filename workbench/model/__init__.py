"""Log-mel (B, F, M) -> latents (B, T, 256) -> context (B, T, D) -> logits (B, C)."""
