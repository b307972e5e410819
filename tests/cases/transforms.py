"""Transforms of a critic's gradient, after it is trained: torch.func, make_fx, forward mode."""

import torch
from small import loader, nets, step
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

m, j, om, oj = nets()
for (x,) in loader:
    step(x, m, j, om, oj)
z = torch.ones(4, 4)
parameters = dict(j.named_parameters())
found = [
    *grad(lambda p: functional_call(j, p, (m(z),)).mean())(parameters).values(),
    vmap(j)(m(z)),
    vmap(grad(lambda x: j(x).sum()))(m(z)),
    jacrev(lambda z: j(m(z)).sum())(z),
    torch.autograd.functional.jacobian(lambda z: j(m(z)).sum(), z),
    make_fx(lambda z: j(m(z)))(z)(z),
]
with forward_ad.dual_level():
    found.append(forward_ad.unpack_dual(j(m(forward_ad.make_dual(z, z)))).tangent)
print([one.sum().item() for one in found])
