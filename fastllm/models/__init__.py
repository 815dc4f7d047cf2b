"""WHAT IS COMPUTED, never how: families of models as data over shared layers.

A checkpoint becomes a `fastllm.models.layers.Decoder` with the place of every weight:
`families` tells the family, its file reads the config and lists the layers, `names` says what the
file calls each weight, `bind` finds and checks them all. No kernels here.
"""
