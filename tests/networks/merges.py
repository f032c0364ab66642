"""A manifest of three merges of linear maps, by which tables are read and merges are gated."""

MANIFEST = """\
schema = 1
[data.val]
safetensors = "other.safetensors"
[data.test]
safetensors = "data.safetensors"
[defaults]
model = "models:linear"

[merge.soup]
parents = { x = "x.safetensors", y = "y.safetensors" }
recipe = { greedy_soup = "val" }
data = "test"
check.merged_loss = { against = "better-parent", limit = "50%" }
check.classes = { property = "merged_loss", metric = "error", by = "class", limit = 5.0 }

[merge.far]
parents = { x = "x.safetensors" }
base = "base.safetensors"
recipe = { call = "models:six" }
check.merged_loss = { data = ["test", "val"], limit = 0.05 }

[merge.lost]
parents = { x = "x.safetensors", z = "z.safetensors" }
recipe = "uniform"
check.merged_loss = { data = "test", limit = 0.05 }
"""
