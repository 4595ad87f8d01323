"""Graphs in, graphs out.

Read `model` first (what a Graph is), then `capture` (how a module becomes one), `modes` (training and
evaluation), `coupling` and `surgery` (which channels go together, and how they are cut), `blocks`,
`fuse` and `simplify` (what is deployed), `count` (what it costs), `save` and `module` (back to files
and to `nn.Module`).
"""
