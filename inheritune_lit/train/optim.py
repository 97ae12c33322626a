"""AdamW with decay on matrices only."""

import torch

from inheritune_lit.train.args import OptimizerArgs


def build_optimizer(model: torch.nn.Module, args: OptimizerArgs) -> torch.optim.AdamW:
    """AdamW over all parameters; weight decay on those with two or more dimensions, never on norms and biases."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=args.lr,
        betas=(args.beta1, args.beta2),
        eps=args.eps,
        fused=True,
    )
