"""Folders as save_pretrained writes them: transformers builds their model and knows the names of its tensors."""
