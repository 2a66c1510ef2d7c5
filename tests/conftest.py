"""Tests compute in float64, also what their modules compute when they are collected."""

import torch

torch.set_default_dtype(torch.float64)
