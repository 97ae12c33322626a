"""lm-eval's model interface on a litgpt model: no conversion, no transformers."""

import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch
from litgpt.model import GPT, do_softcapping
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from inheritune_lit.errors import UserError
from inheritune_lit.progress import Progress
from inheritune_lit.tokenizer import Tokenizer

# Rows of the head's product held at once: bounds its memory, whatever the vocabulary.
_HEAD_CHUNK = 1024


class LitLM(TemplateLM):
    """Scores continuations with a litgpt model, as the paper did: no BOS, EOS as the prefix of an empty context.

    Equal inputs are computed once (the four one-token answers of an MMLU question share one), the head is applied only
    where a continuation is scored, and its log-softmax is fp32.

    Args:
        model: on its device; its head is detached, so the caller must not use it any more.
        tokenizer: the checkpoint's.
        batch_size: sequences a forward pass.
        stream: where progress is shown.

    Attributes:
        truncated: requests whose beginning did not fit the model's context and was cut off.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, batch_size: int, stream: TextIO = sys.stderr) -> None:
        super().__init__()
        self._stream = stream
        self._model = model.eval()
        self._head = model.lm_head
        self._softcap = model.config.final_logit_softcapping
        # Without its head the model returns the final hidden states.
        model.lm_head, model.config.final_logit_softcapping = torch.nn.Identity(), None
        self._device = self._head.weight.device
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        if self._tokenizer.eos_id is None:
            raise UserError(f"{self._tokenizer.path} defines no EOS token, which stands before an empty context")
        return self._tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens the model can attend to."""
        return self._model.max_seq_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; special tokens are never added."""
        return self._tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, cut into windows of the context's length; each token is scored once."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            rolled = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, rolled):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (loglikelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += loglikelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Not offered: the paper's tasks only compare likelihoods."""
        raise UserError("this task needs generated text, which `inheritune eval` does not offer; choose another task")

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether it is the greedy choice."""
        scored_by_input: dict[tuple[int, ...], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            self.truncated += len(context) + len(continuation) - 1 > self.max_length
            kept = tuple([*context, *continuation][-(self.max_length + 1) : -1])
            scored_by_input.setdefault(kept, []).append(number)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # Longest first: a batch that is too large for memory fails at once, and padding is short.
        inputs = sorted(scored_by_input, key=len, reverse=True)
        with Progress("score", len(inputs), "input", stream=self._stream) as progress:
            for first in range(0, len(inputs), self._batch_size):
                batch = inputs[first : first + self._batch_size]
                self._score_batch(batch, scored_by_input, requests, results)
                progress.update(len(batch))
        return results

    def _score_batch(
        self,
        batch: list[tuple[int, ...]],
        scored_by_input: dict[tuple[int, ...], list[int]],
        requests: list[tuple[Any, list[int], list[int]]],
        results: list[tuple[float, bool]],
    ) -> None:
        longest = max(map(len, batch))
        # Padding stands behind the text, where causal attention cannot see it.
        tokens_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in batch], device=self._device)
        hidden_BTD = self._model(tokens_BT)
        jobs = [(row, number) for row, ids in enumerate(batch) for number in scored_by_input[ids]]
        rows, positions, targets = [], [], []
        for row, number in jobs:
            continuation = requests[number][2]
            end = len(batch[row])
            rows += [row] * len(continuation)
            positions += range(end - len(continuation), end)
            targets += continuation
        hidden_ND = hidden_BTD[torch.tensor(rows, device=self._device), torch.tensor(positions, device=self._device)]
        logprobs, greedy = self._score_positions(hidden_ND, torch.tensor(targets, device=self._device))
        start = 0
        for _, number in jobs:
            end = start + len(requests[number][2])
            results[number] = (sum(logprobs[start:end]), all(greedy[start:end]))
            start = end

    def _score_positions(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[list[float], list[bool]]:
        """Log-probability of each target, and whether it has the highest logit."""
        logprobs: list[float] = []
        greedy: list[bool] = []
        for hidden_CD, targets_C in zip(hidden_ND.split(_HEAD_CHUNK), targets_N.split(_HEAD_CHUNK), strict=True):
            logits_CV = self._head(hidden_CD).float()
            if self._softcap is not None:
                logits_CV = do_softcapping(logits_CV, self._softcap)
            chosen_C = logits_CV.gather(1, targets_C[:, None])[:, 0] - logits_CV.logsumexp(dim=1)
            logprobs += chosen_C.tolist()
            greedy += (logits_CV.argmax(dim=1) == targets_C).tolist()
        return logprobs, greedy
