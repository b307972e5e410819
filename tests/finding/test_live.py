"""find(topk) in a process of one's own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader

from topk_plugin import TopK, attach, find
from topk_plugin.errors import ConfigError, NoEffectError
from topk_plugin.finding.finder import Finder


class Loop:
    """A small GAN in float64, from the same seed each time."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.critic = self.net(2, 1)
        self.generator = self.net(3, 2)
        self.optimizers = [
            torch.optim.Adam(n.parameters(), 1e-2) for n in (self.critic, self.generator)
        ]
        data = torch.randn(32, 2, dtype=torch.float64) + 1
        self.loader = DataLoader(data, batch_size=8, shuffle=True)

    @staticmethod
    def net(into: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(into, 8), nn.Tanh(), nn.Linear(8, out)).double()

    def fakes(self) -> torch.Tensor:
        return self.generator(torch.randn(8, 3, dtype=torch.float64))

    def train(self, passes: int = 3, trains_critic: bool = True) -> None:
        torch.manual_seed(1)
        of_critic, of_generator = self.optimizers
        for _ in range(passes):
            for x in self.loader:
                of_critic.zero_grad()
                loss = softplus(-self.critic(x)) + softplus(self.critic(self.fakes().detach()))
                loss.mean().backward()
                if trains_critic:
                    of_critic.step()
                of_generator.zero_grad()
                softplus(-self.critic(self.fakes())).mean().backward()
                of_generator.step()

    def weights(self) -> torch.Tensor:
        parameters = (*self.critic.parameters(), *self.generator.parameters())
        return torch.cat([p.detach().flatten() for p in parameters])


def topk() -> TopK:
    return TopK(gamma=0.5, nu=0.25)


def test_it_does_what_attach_does_for_a_critic_that_is_given():
    plain, given, found = Loop(), Loop(), Loop()
    plain.train()
    with attach(given.critic, given_topk := topk(), loader=given.loader):
        given.train()
    with find(found_topk := topk(), loader=found.loader) as finder:
        found.train()
        assert [one.title for one in finder.found] == ["a Sequential"]
    assert not torch.equal(plain.weights(), given.weights())
    assert torch.equal(found.weights(), given.weights())
    assert found_topk.report() == given_topk.report()
    assert found_topk.report().dropped == 40


def test_epochs_that_are_told_by_hand():
    loop, other = Loop(), Loop()
    with find(of_found := topk()):
        loop.train(1)
        of_found.end_epoch()
        loop.train(1)
    with attach(other.critic, of_given := topk()):
        other.train(1)
        of_given.end_epoch()
        other.train(1)
    assert of_found.report() == of_given.report()
    assert torch.equal(loop.weights(), other.weights())


def test_everything_is_put_back():
    def methods():
        classes = (nn.Module, nn.Sequential, nn.Linear, torch.optim.Optimizer)
        return [dict(vars(cls)) for cls in classes]

    before = methods()
    loop = Loop()
    with find(topk(), loader=loop.loader):
        loop.train()
    assert methods() == before
    with pytest.raises(NoEffectError), find(topk()):
        Loop().train(trains_critic=False)
    assert methods() == before


def test_where_no_critic_is_found_it_says_so_at_the_end_of_the_first_pass():
    loop = Loop()
    with (
        pytest.raises(NoEffectError, match=r"no critic was found in 4 optimizer steps") as raised,
        find(topk(), loader=loop.loader),
    ):
        loop.train(trains_critic=False)
    assert "a Sequential: output 0 (8, 1), 32 of 32 numbers pushed up" in str(raised.value)


def test_where_nothing_scores_it_says_so_at_the_end():
    loop = Loop()

    def train():
        with find(topk()):
            loop.fakes().mean().backward()
            loop.optimizers[1].step()

    with pytest.raises(NoEffectError, match="no module that one of"):
        train()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("topk",), "found a str as topk"), ((TopK(), [1]), "found a list as the loader")],
)
def test_wrong_arguments(arguments, said):
    with pytest.raises(ConfigError, match=said), find(*arguments):
        pass


def test_a_finder_is_stopped_twice_as_once():
    finder = Finder(topk())
    finder.start()
    finder.stop()
    finder.stop()
