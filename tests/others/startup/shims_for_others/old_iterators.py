"""Iterators of data loaders had a method ``next``."""

from torch.utils.data import dataloader

dataloader._BaseDataLoaderIter.next = dataloader._BaseDataLoaderIter.__next__
