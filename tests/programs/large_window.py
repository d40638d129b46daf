"""Offsets past 2^31 bytes: two slots of 2.4 GB a learner, of which a few pages are touched, and a broadcast."""

import problems
import torch

from horovod_dpsgd.gossip import Window

NUMEL = 600_000_000
PLACES = (0, 2**29 + 1, NUMEL - 1000)  # the second is past 2^31 bytes in slot 0, the last past 2^32 in slot 1

us = problems.start()
window = Window(us, lambda _: [NUMEL, NUMEL], torch.float32)
for area, memory in enumerate(window.areas):
    for place in PLACES:
        memory[place : place + 1000] = 100 * us.rank + 10 * area + PLACES.index(place)
us.barrier()
other = 1 - us.rank
for area in range(2):
    for place in PLACES:
        expected = torch.full((1000,), 100.0 * other + 10 * area + PLACES.index(place))
        found = window.area(other, area)[place : place + 1000]
        assert torch.equal(found, expected), (area, place, found[0], expected[0])
us.barrier()
window.free()
del window
embedding = torch.zeros(2**31 + 4096, dtype=torch.uint8)
embedding[-1] = us.rank + 7
us.broadcast_(embedding, root=1)
assert embedding[-1] == 8, embedding[-1]
if us.rank == 0:
    print("right beyond 2^32 bytes")
