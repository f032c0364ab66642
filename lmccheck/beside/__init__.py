"""What a model's folder says beside its weights: configuration, preprocessing, tokenizer; JSON and text, no torch."""
