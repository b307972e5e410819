"""Runs of the reference experiments: jobs, atomic checkpoints, exact resume, progress.

A run is a folder: ``run.json`` says what was asked for, and each of its jobs, a training that is
resumed by itself, has a folder with ``metrics.jsonl`` (one JSON row a line) and ``checkpoint.pt``.
"""

from topk_plugin.files import write_atomically
from topk_plugin.reference.runs.files import load_checkpoint, save_checkpoint
from topk_plugin.reference.runs.job import is_done, train
from topk_plugin.reference.runs.machine import versions
from topk_plugin.reference.runs.records import Draws, Job, Member, Row, Tell, Training
from topk_plugin.reference.runs.reproduction import reproduce
from topk_plugin.reference.runs.request import Request, settings_of
from topk_plugin.reference.runs.workers import keep_memory, train_all

__all__ = [
    "Draws",
    "Job",
    "Member",
    "Request",
    "Row",
    "Tell",
    "Training",
    "is_done",
    "keep_memory",
    "load_checkpoint",
    "reproduce",
    "save_checkpoint",
    "settings_of",
    "train",
    "train_all",
    "versions",
    "write_atomically",
]
