"""How fast this machine trains and draws, beside PyTorch and its other peers.

`fastgen bench` runs `climb.climb`; the repository's benchmarks/ build on the same clock, peers and
layers.

    timing, runners, hardware, machine   the clock, the ceilings, what was measured on
    layers, passes, steps, work          what is measured
    peers, jax_peer, onnx_peer           what it is measured against
    rungs, subjects, agreement, ladder   the speed ladder
    tables, charts, drawing              how it is shown
"""
