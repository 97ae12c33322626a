"""Memory of a training step, worked out before it runs."""

from dataclasses import dataclass

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.model.flops import kept_bytes
from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs
from inheritune_lit.train.loss import CHUNK_TOKENS


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device.

    Attributes:
        weights, gradients, optimizer: of all parameters; fp32 copies count as optimizer.
        casts: bf16 copies of fp32 weights that the backward pass needs.
        activations: what the forward pass of one micro-batch keeps for the backward pass.
        loss: logits and their gradients.
        teacher: a teacher and its forward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    casts: int
    activations: int
    loss: int
    teacher: int = 0

    @property
    def total(self) -> int:
        """All of them at once, as when a step's second micro-batch turns around."""
        model = self.weights + self.gradients + self.optimizer
        return model + self.casts + self.activations + self.loss + self.teacher


def step_memory(
    config: Config,
    parameters: int,
    micro_batch_size: int,
    block_size: int,
    precision: Precision,
    speed: SpeedArgs,
    optimizer: OptimizerArgs,
    loss_kernel: str,
    compiled: bool,
) -> StepMemory:
    """Predict the memory of one training step on one device.

    Args:
        config: the model's.
        parameters: how many, a tied head counted once.
        loss_kernel: as chosen, not "auto".
    """
    low = precision == "bf16-true"
    moments = {"adamw": 8, "adamw8bit": 2}.get(optimizer.name, 8)
    copies = 4 if low and optimizer.master_weights else 0
    each = 2 if low else 4
    tokens = micro_batch_size * block_size
    if compiled:
        fixed, kept = 0, _compiled_elements(config) * block_size * (4 if precision == "32-true" else 2)
    else:
        fixed, kept = _eager_bytes(config, block_size, precision)
    inputs = block_size * config.n_embd * each
    layers = kept + (config.n_layer - 1) * inputs if speed.activation_checkpointing else config.n_layer * kept
    held = 1 if speed.activation_checkpointing else config.n_layer
    return StepMemory(
        weights=each * parameters,
        gradients=each * parameters,
        optimizer=(moments + copies) * parameters,
        casts=held * fixed,
        activations=micro_batch_size * layers,
        loss=_loss_bytes(config, tokens, loss_kernel, precision),
    )


def largest_micro_batch(available: int, memory: StepMemory, micro_batch_size: int) -> int:
    """How many samples per forward pass fit into ``available`` bytes, from the prediction for another number."""
    fixed = memory.total - memory.activations - memory.loss
    sample = (memory.activations + memory.loss) / micro_batch_size
    return max(0, int((available - fixed) / sample))


def _loss_bytes(config: Config, tokens: int, kernel: str, precision: Precision) -> int:
    half = 4 if precision == "32-true" else 2
    vocabulary = config.padded_vocab_size
    if kernel == "chunked":
        # A chunk's logits in both types and their gradient, and the finished gradients of head and hidden states.
        chunk = min(tokens, CHUNK_TOKENS)
        return chunk * vocabulary * (8 + half) + vocabulary * config.n_embd * 4 + tokens * config.n_embd * half
    if kernel == "distilled":
        # Student and teacher: logits, softened logits, log-probabilities, and what autograd adds.
        chunk = min(tokens, CHUNK_TOKENS)
        return (
            chunk * vocabulary * (32 + 2 * half)
            + 2 * vocabulary * config.n_embd * 4
            + tokens * config.n_embd * 2 * half
        )
    if kernel == "liger":
        return tokens * vocabulary * half  # the gradient takes the logits' place
    return tokens * vocabulary * (8 + half)


def _compiled_elements(config: Config) -> int:
    """Numbers per token and block that a compiled model keeps: what cannot be recomputed without a matrix product.

    Both residual sums, queries, keys and values as attention takes them, attention's output, and the MLP's products.
    For the OpenLLaMA-3B slice 73 KB per token and layer in bf16.
    """
    mlp = 2 if config.mlp_class_name in ("LLaMAMLP", "GemmaMLP") else 1
    return 2 * config.n_embd + 4 * config.n_head * config.head_size + mlp * config.intermediate_size


def _eager_bytes(config: Config, block_size: int, precision: Precision) -> tuple[int, int]:
    """What autograd keeps of one block, counted by autograd itself on tensors without data.

    Returns:
        Bytes whatever the batch (casts of weights), and bytes per sample.
    """
    one, two = (kept_bytes(config, samples, block_size, precision) for samples in (1, 2))
    return 2 * one - two, two - one
