"""What would measure the samples."""

import torch


def prepare_inception_metrics(dataset, parallel, no_fid):
    return torch.zeros(1).cuda()
