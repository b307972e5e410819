"""Which outputs of an attached critic are scores: those of generated samples that are read."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from losses import BATCH, WIDTH, Critic, error, gradients, make_generator, make_topk, noise, reals
from torch import nn

from topk_plugin import TopK, attach
from topk_plugin.errors import DirectionUnknown, ScoreShapeError
from topk_plugin.loop.heads import read_alike

pytestmark = pytest.mark.usefixtures("seeded")

K = 3
SGD = torch.optim.SGD


class Returns(nn.Module):
    """A critic of two networks, which returns what ``f(critic, other, *inputs)`` makes of them."""

    def __init__(self, f):
        super().__init__()
        self.one, self.two, self.f = Critic(), Critic(), f

    def forward(self, *inputs):
        return self.f(self.one, self.two, *inputs)


def step(G, D, loss, topk=None, heads=()):
    """The generator's gradient of ``loss(D, G)``."""
    optimizer = SGD(G.parameters(), 0.0)
    if topk is None:
        loss(D, G).backward()
        return gradients(G)
    with attach(D, topk, heads=heads):
        loss(D, G).backward()
        found = gradients(G)
        optimizer.step()
    return found


def agrees(f, loss, by_hand, heads=()):
    G, D = make_generator(), Returns(f)
    G1, D1 = copy.deepcopy((G, D))
    z, x = noise(), reals()
    topk = make_topk(K, heads=heads)
    found = step(G, D, lambda D, G: loss(D, G(z), x), topk)
    expected = step(G1, D1, lambda D, G: by_hand(D, G(z), x))
    assert error(found, expected) < 1e-12
    assert (topk.report().rows, topk.report().dropped) == (BATCH, BATCH - K)


def best(scores):
    return scores.flatten().topk(K).indices


def test_a_critic_that_scores_real_and_fake_has_one_head():
    """Before, the scores of the reals were ranked, and nothing changed."""

    def loss(D, fake, x):
        real, fake = D(x, fake)
        return F.softplus(-(fake - real)).mean()

    def by_hand(D, fake, x):
        real, fake = D(x, fake)
        rows = best(fake)
        return F.softplus(-(fake[rows] - real[rows])).mean()

    agrees(lambda one, two, x, fake: (one(x), one(fake)), loss, by_hand)
    agrees(
        lambda one, two, x, fake: {"a": [one(x)], "b": {"c": (None, one(fake))}},
        lambda D, fake, x: F.softplus(-D(x, fake)["b"]["c"][1]).mean(),
        lambda D, fake, x: F.softplus(-(s := D(x, fake)["b"]["c"][1])[best(s)]).mean(),
    )


@pytest.mark.parametrize("heads", [(0, 1), (0,), ("0",)])
def test_a_score_of_reals_cannot_be_named(heads):
    G, D = make_generator(), Returns(lambda one, two, x, fake: (one(x), one(fake)))
    with attach(D, TopK(heads=heads)), pytest.raises(ScoreShapeError) as caught:
        D(reals(), G(noise()))
    for words in ("heads names", "0: float64(8, 1), not of the gen", "1: float64(8, 1), of the g"):
        assert words in str(caught.value)


def test_two_scores_in_the_loss_share_a_ranking():
    """Before, half of the loss was not gated."""

    def loss(D, fake, x, rows=slice(None)):
        a, b = D(fake)
        return ((a[rows] - 1) ** 2).mean() + ((b[rows] - 1) ** 2).mean()

    def by_hand(D, fake, x):
        a, b = D(fake)
        return loss(D, fake, x, best((a + b) / 2))

    agrees(lambda one, two, fake: (one(fake), two(fake)), loss, by_hand)
    agrees(lambda one, two, fake: (one(fake), two(fake)), loss, by_hand, heads=(0, 1))


def test_of_two_scores_the_one_that_the_loss_reads_ranks():
    agrees(
        lambda one, two, fake: [one(fake), [two(fake)]],
        lambda D, fake, x: F.softplus(-D(fake)[1][0]).mean(),
        lambda D, fake, x: F.softplus(-(s := D(fake)[1][0])[best(s)]).mean(),
    )


def test_two_scores_in_line_a():
    G, D = make_generator(), Returns(lambda one, two, fake: (one(fake), two(fake)))
    z, topk = noise(), make_topk(K)
    a, b = topk(D(G(z)))
    (F.softplus(-a).mean() + F.softplus(-b).mean()).backward()
    found = gradients(G)
    a, b = D(G(z))
    rows = best((a + b) / 2)
    for p in G.parameters():
        p.grad = None
    (F.softplus(-a[rows]).mean() + F.softplus(-b[rows]).mean()).backward()
    assert error(found, gradients(G)) < 1e-12


def test_heads_that_are_pushed_apart_are_an_error_when_the_epoch_ends():
    """A critic that judges real and fake in one batch: autograd cannot tell their rows apart."""

    def together(one, two, x, fake):
        return one(torch.cat([x, fake])).chunk(2)

    G, D, topk = make_generator(), Returns(together), TopK()
    optimizer = SGD(G.parameters(), 0.1)
    with attach(D, topk):
        for _ in range(3):
            optimizer.zero_grad()
            real, fake = D(reals(), G(noise()))
            F.softplus(-(fake - real)).mean().backward()
            optimizer.step()
        with pytest.raises(DirectionUnknown, match="heads"):
            topk.end_epoch()


def test_what_the_critic_returned_is_told_where_no_score_is_found():
    def f(one, two, x, fake):
        return {"real": one(x), "fake": [one(fake).expand(-1, 7)], "n": torch.ones(2)}

    G, D = make_generator(), Returns(f)
    with attach(D, TopK()), pytest.raises(ScoreShapeError) as caught:
        D(reals(), G(noise()))
    for words in (
        "real: float64(8, 1), not of the generator's",
        "fake.0: float64(8, 7), of the generator's samples",
        "n: float32(2,), not of",
        "--heads",
    ):
        assert words in str(caught.value)


def test_a_map_and_the_same_map_flattened():
    """HiFi-GAN's critics keep the score map among the features."""

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(WIDTH, 5).double()

        def forward(self, x):
            scores = self.net(x)[:, None]
            return scores.flatten(1), [x, scores]

    G, D, z = make_generator(), Keeps(), noise()
    with attach(D, TopK()), pytest.raises(ScoreShapeError, match=r"1\.1 and 0 hold the same"):
        D(G(z))
    with attach(D, TopK(heads=(0,))):
        D(G(z))


def per_pixel(one, two, x):
    return {"all": one(x.flatten(1)), "each": x * two(x.flatten(1)).view(-1, 1, 1, 1)}


def test_a_score_of_each_pixel_has_to_be_named_with_all_others():
    G, D = make_generator(), Returns(per_pixel)
    said = r"name all that are scores, --heads all,each or TopK\(heads=\('all', 'each'\)\)"
    with attach(D, TopK()), pytest.raises(ScoreShapeError, match=said):
        D(G(noise()).view(BATCH, 1, 2, 3))


def features_end_with_the_score(one, two, fake):
    scores = one(fake)
    return scores, [two(fake), scores]


def matched_features(D, fake, x, rows=lambda scores: slice(None)):
    scores, (_, last) = D(fake)
    return F.softplus(-scores[rows(scores)]).mean() + (last - D(x)[1][1].detach()).abs().mean()


def test_of_a_tensor_that_is_returned_twice_the_named_place_is_the_score():
    """Before, what feature matching sent to the score map lost the dropped rows, too."""

    def by_hand(D, fake, x):
        return matched_features(D, fake, x, best)

    agrees(features_end_with_the_score, matched_features, by_hand, heads=(0,))

    def crossed(D, fake, x, rows=lambda scores: slice(None)):
        scores, (_, last) = D(fake)
        return F.softplus(-last[rows(last)]).mean() + (scores - 1).abs().mean()

    agrees(features_end_with_the_score, crossed, lambda *a: crossed(*a, best), heads=("1.1",))


@pytest.mark.parametrize("line", [True, False])
def test_a_tensor_that_is_returned_twice_under_a_score_gate(line):
    G, D = make_generator(), Returns(features_end_with_the_score)
    topk, z, x = make_topk(K, heads=(0,)), noise(), reals()
    if line:
        matched_features(lambda x: topk(D(x)) if x.requires_grad else D(x), G(z), x).backward()
    else:
        with attach(D, topk), topk.generator_step():
            matched_features(D, G(z), x).backward()
    found = gradients(G)
    for p in G.parameters():
        p.grad = None
    matched_features(D, G(z), x, best).backward()
    assert error(found, gradients(G)) < 1e-12


@pytest.mark.parametrize("pushed", [True, False])
def test_a_wide_output_that_is_pushed_as_scores_are_is_warned_about(pushed):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, 1).double(), nn.Linear(WIDTH, 5).double()

        def forward(self, x):
            return self.a(x), self.b(x)

    G, D, topk = make_generator(), Wide(), TopK()
    optimizer = SGD(G.parameters(), 0.1)
    with attach(D, topk), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            a, b = D(G(noise()))
            of_b = -b.mean() if pushed else F.cross_entropy(b, torch.randint(5, (BATCH,)))
            (of_b - a.mean()).backward()
            optimizer.step()
    told = [str(w.message) for w in caught if "one way" in str(w.message)]
    assert len(told) == 2 * pushed
    assert all("1: float64(8, 5)" in text for text in told)


def test_maps_with_several_rows_for_a_sample_are_warned_about():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(WIDTH, 1).double()

        def forward(self, x):
            halves = torch.cat([x, x / 2])
            return self.a(x), halves[:, None, :2] * self.a.weight.sum()

    G, D, topk = make_generator(), Scales(), TopK()
    optimizer = SGD(G.parameters(), 0.1)
    with attach(D, topk), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        a, b = D(G(noise()))
        (-a.mean() - b.mean()).backward()
        optimizer.step()
    (told,) = [str(w.message) for w in caught if "one way" in str(w.message)]
    assert "2 rows for each sample" in told


def test_maps_of_reals_are_not_warned_about():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(WIDTH, 6).double()

        def forward(self, real, fake):
            return self.a(real)[:, None], self.a(fake)[:, None]

    G, D, topk = make_generator(), Pair(), TopK()
    optimizer = SGD(G.parameters(), 0.1)
    with attach(D, topk), warnings.catch_warnings():
        warnings.simplefilter("error")
        real, fake = D(reals(), G(noise()))
        F.softplus(real - fake).mean().backward()
        optimizer.step()
    assert topk.steps == 1


def test_a_critic_of_pixels_is_named_or_told():
    G, D = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
    with attach(D, TopK()), pytest.raises(ScoreShapeError, match=r"--heads 0 or TopK"):
        D(G(torch.randn(8, 1, 16, 16)))
    topk = TopK(gamma=0.5, heads=(0,))
    topk.end_epoch()
    with attach(D, topk):
        (-D(G(torch.randn(8, 1, 16, 16)))).mean().backward()
        SGD(G.parameters(), 0.1).step()
    assert topk.report().dropped == 4


def test_each_critic_has_its_own_heads():
    G, A, B = make_generator(), Returns(lambda one, two, x: (one(x), two(x))), Critic()
    topk, z = make_topk(K), noise()
    optimizer = SGD(G.parameters(), 0.0)
    with attach(A, topk, heads=("1",)), attach(B, topk):
        a, b = A(G(z)), B(G(z))
        (F.softplus(-a[0]).mean() + F.softplus(-a[1]).mean() + F.softplus(-b).mean()).backward()
        found = gradients(G)
        optimizer.step()
    for p in G.parameters():
        p.grad = None
    a, b = A(G(z)), B(G(z))
    rows = best(a[1])
    of_a = F.softplus(-a[0]).mean() + F.softplus(-a[1][rows]).mean()
    (of_a + F.softplus(-b[best(b)]).mean()).backward()
    assert error(found, gradients(G)) < 1e-12


def matched(s):
    return (s[:, 0] - s[:, 1]).square().mean()


ALIKE = {
    "hinge": lambda s: -s.mean(),
    "hinge, cut": lambda s: (1 - s).relu().mean(),
    "least squares": lambda s: (s - 1).square().sum(),
    "non-saturating": lambda s: F.softplus(-s).mean(),
    "saturating": lambda s: -F.softplus(s).mean(),
    "means of samples": lambda s: F.softplus(-s.mean(1)).mean(),
}
UNLIKE = {
    "one of two classes": lambda s: F.cross_entropy(s[:, :2], torch.ones(BATCH).long()),
    "a log-probability": lambda s: -F.log_softmax(s, 1)[:, 1].mean(),
    "the logsumexp of classes": lambda s: F.softplus(-s.logsumexp(1)).mean(),
    "a column for each sample": lambda s: F.softplus(
        -s[range(BATCH), torch.arange(BATCH) % 5]
    ).mean(),
    "a distance of features": matched,
}


@pytest.mark.parametrize("loss", ALIKE | UNLIKE)
def test_how_a_loss_reads_several_numbers_of_a_sample(loss):
    scores = (torch.randn(BATCH, 5, dtype=torch.float64) * 2).requires_grad_()
    (gradient,) = torch.autograd.grad((ALIKE | UNLIKE)[loss](scores), scores)
    assert read_alike(scores.detach(), gradient) == (loss in ALIKE)


@pytest.mark.parametrize("loss", ALIKE | UNLIKE)
def test_class_logits_that_are_named_are_told(loss):
    G, D, topk = make_generator(), nn.Linear(WIDTH, 5).double(), TopK(heads=(0,))
    D.weight.data.mul_(9)

    def step():
        with attach(D, topk):
            (ALIKE | UNLIKE)[loss](D(G(noise()))).backward()
            SGD(G.parameters(), 0.1).step()

    if loss in ("one of two classes", "a distance of features", "a log-probability"):
        with pytest.raises(ScoreShapeError, match="adds up to nothing in each sample"):
            step()
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    told = [w for w in caught if "otherwise than as scores" in str(w.message)]
    assert len(told) == (loss in UNLIKE)


class OfGroups(nn.Module):
    """Scores groups of its rows, as a critic of graphs does, or returns their features alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.score = nn.Linear(WIDTH, 5).double(), nn.Linear(5, 1).double()

    def forward(self, x, groups, score=True):
        features = torch.zeros(int(groups.max()) + 1, 5, dtype=x.dtype)
        features = features.index_add(0, groups, self.layer(x))
        return self.score(features) if score else features


def test_scores_of_another_number_of_rows_are_no_other_mode():
    """Where it happens to score as many groups as it got rows, or a divisor, it is gated."""
    G, D, topk = make_generator(), OfGroups(), make_topk(K)
    few, many = torch.arange(BATCH) // 3, torch.arange(BATCH)
    with attach(D, topk):
        D(G(noise()), many).mean().backward()
        assert D(G(noise()), few, score=False).shape == (3, 5)
        with pytest.raises(ScoreShapeError, match=r"\(3, 1\) for a batch of 8.*graphs.*topk\("):
            D(G(noise()), few)
