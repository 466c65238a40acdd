//! A plain machine-learning library on Burn: models, tokenizers, LoRA, losses, optimisation, generation.
