"""One temperature for a trained network, so that its probabilities can be believed (Guo et al. 2017), folded into its last layer.

Dividing all logits by the same number makes every probability more or less sure and changes no label. Folded into the weights and the
bias of the last layer it is part of the network: whatever the network is exported, converted or quantised to says the same.
"""

import torch

from worker.training.weights import last_linear

LOWEST, HIGHEST = 0.25, 10.0  # what lies beyond says more of the validation images than of the network
FEWEST_IMAGES = 50
FEWEST_MISTAKES = 5  # without any the surest network would be the best
HALVINGS = 50


def fitted(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, str]:
    """The temperature with which (N, C) logits give their (N,) targets the highest likelihood, and a sentence where it is none.

    It is 1 where images or mistakes are too few to tell, and never beyond LOWEST and HIGHEST.
    """
    wrong = int((logits.argmax(dim=1) != targets).sum())
    for have, least, what in (
        (len(targets), FEWEST_IMAGES, "validation images"),
        (wrong, FEWEST_MISTAKES, "mistakes on the validation images"),
    ):
        if have < least:
            return (
                1.0,
                f"The probabilities are as training left them: {least} {what} are needed to correct how sure it is, and there are {have}.",
            )
    z = logits.double()
    of_targets = z.gather(1, targets[:, None]).mean()

    def slope(sharpness: float) -> float:
        """The derivative of the negative log-likelihood by 1 / temperature: it grows throughout, so there is one minimum."""
        return float(((z * sharpness).softmax(dim=1) * z).sum(dim=1).mean() - of_targets)

    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    found = round(1 / low, 4)
    if found in {LOWEST, HIGHEST}:
        which = "far surer" if found == HIGHEST else "far less sure"
        return (
            found,
            f"It is {which} than it is right, so that even the largest correction, by a temperature of {found:g}, does not make up for it.",
        )
    return found, ""


@torch.no_grad()
def fold(network: torch.nn.Module, temperature: float) -> None:
    """Divide a network's logits by a temperature, in its last layer."""
    for parameter in network.get_submodule(last_linear(network)).parameters():
        parameter.div_(temperature)
