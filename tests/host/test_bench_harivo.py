"""The measuring tools of the benchmark of HARIVO's parts."""

import torch

from stillmotion.benchmarks.cost.bench_harivo import Alive, CrossAttentions


def test_alive_counts_tensors_made_inside_and_not_freed_ones():
    x = torch.zeros(1000)
    with Alive() as alive:
        y = x + 1  # 4000 bytes
        z = y * 2  # 8000
        del y
        z = z.view(10, 100)  # a view needs no memory
        z.add_(1)
        w = z.double()  # 4000 + 8000
        del z, w
        x.clone()
    assert alive.peak == 12000


def test_cross_attentions_are_timed_and_others_are_not():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn1, self.attn2 = torch.nn.Linear(8, 8), torch.nn.Linear(512, 512)

        def forward(self, x):
            for _ in range(20):
                self.attn2(x)
            return x

    block = Block()
    watch = CrossAttentions(block)
    busy = watch.of(lambda: block(torch.randn(512, 512)))
    assert busy > 0
    assert watch.of(lambda: block.attn1(torch.randn(8))) == 0
