"""Adapters of the PEFT library: what their config says, what each tensor is made of, and the product."""
