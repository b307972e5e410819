"""A prefetcher: the next batch is fetched before the present one is trained on."""

from small import loader, nets, step


class Prefetcher:
    def __init__(self, source):
        self.batches = iter(source)
        self.fetch()

    def fetch(self):
        self.waiting = next(self.batches, None)

    def next(self):
        batch = self.waiting
        self.fetch()
        return batch


networks = nets()
for _ in range(4):
    fetched = Prefetcher(loader)
    while (batch := fetched.next()) is not None:
        step(batch[0], *networks)
print("4 passes trained")
