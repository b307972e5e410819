"""What top-k wraps, called by the names that torch gives its parameters."""

import torch
from small import loader, nets, step
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

m, j, om, oj = nets()
for (x,) in loader:
    step(x, m, j, om, oj)
om.zero_grad(set_to_none=False)
j.zero_grad(set_to_none=False)
om.load_state_dict(state_dict=om.state_dict())
torch.optim.Optimizer.load_state_dict(self=om, state_dict=torch.optim.Optimizer.state_dict(self=om))
torch.optim.Optimizer(params=list(m.parameters()), defaults={"lr": 0.1})
j.load_state_dict(state_dict=j.state_dict(prefix=""), strict=True)
j._load_from_state_dict(
    state_dict=j.state_dict(), prefix="", local_metadata={}, strict=True, missing_keys=[],
    unexpected_keys=[], error_msgs=[],
)  # fmt: skip
j._save_to_state_dict(destination={}, prefix="", keep_vars=False)
nn.DataParallel(module=j, device_ids=None, dim=0)
j.forward(x=x)
j(x=m(z=torch.randn(len(x), 4)))
torch.autograd.backward(tensors=[j(x).sum()], grad_tensors=None)
iterator = iter(loader)
iterator._reset(loader=loader, first_iter=True)
j.compile(backend="eager")
torch.compile(model=j, backend="eager")(x=x)
torch.fx.Tracer().trace(root=m)
torch.jit.trace(func=m, example_inputs=torch.randn(2, 4))
model, optimizer = get_state_dict(m, om)
set_state_dict(m, om, model_state_dict=model, optim_state_dict=optimizer)
print("by keyword")
