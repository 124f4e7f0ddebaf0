"""SimPO: the log-prob per token is the reward, and the chosen one's has to be higher by a margin. No reference.

loss = -log σ(beta (l_w - l_l) - margin),   l = log-prob per token

Source: Meng et al. (2405.14734) eq. 6.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from burnish import PairLogps, preference_loss


@preference_loss("simple_preference", reference="none", paper="2405.14734")
def simple_preference(pair: PairLogps, *, beta: float, target_margin: float = 0.5) -> Tensor:
    """-log σ(beta (l_w - l_l) - target_margin): one number a pair, (M,)."""
    gap = pair.chosen / pair.chosen_length - pair.rejected / pair.rejected_length  # (M,)
    return -logsigmoid(beta * gap - target_margin)
