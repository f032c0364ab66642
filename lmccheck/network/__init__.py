"""A network as it is measured: module, device, loss, data; endpoints, pairs and sets are views of it."""
