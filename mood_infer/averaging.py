"""One network in place of several: the mean of the weights of members that started from the same network.

Networks trained on for a while from one network stay close to it: the mean of their weights is a network
again, as good as the mean of their maps and as cheap as one of them (Wortsman et al., "Model soups", ICML
2022). Measured for the 400 and 1,100 steps of ``compact``. The mean of networks with starts of their own is
worth nothing, so those stay as they are.
"""

import copy
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mood_infer.weights import Manifest, Member

ALIKE = 0.9  # cosine of two networks' weights; shipped ones of one kind: 0.96 and more, of two: 0.73 to 0.78


def average_members(
    manifest: Manifest, networks: Sequence[nn.Module]
) -> tuple[Manifest, list[nn.Module], list[float]]:
    """Put one network in place of all members with much the same weights and the same edges.

    Args:
        manifest: of the ensemble.
        networks: one for each member, in evaluation.

    Returns:
        A manifest whose members are the averages, in the order of the first of each, their networks, and how
        much the map of each counts in the ensemble's mean: as much as all whose average it is. A member
        that is like no other is its own average. The file of an average names all that are in it, its sha256
        is over theirs; its steps, seed and data are those of the first.
    """
    groups: list[list[tuple[Member, nn.Module]]] = []
    for member, network in zip(manifest.members, networks, strict=True):
        for group in groups:
            first, like = group[0]
            if first.edges == member.edges and _cosine(like, network) > ALIKE:
                group.append((member, network))
                break
        else:
            groups.append([(member, network)])
    made = [_average(*zip(*pairs, strict=True)) for pairs in groups]
    weights = [sum(manifest.weight_of(member) for member, _ in pairs) for pairs in groups]
    averages = manifest.with_members(tuple(member for member, _ in made))
    return averages, [network for _, network in made], weights


def _cosine(one: nn.Module, other: nn.Module) -> float:
    """Of all weights of the convolutions; norms and biases are much alike in any two networks."""
    return float(nn.functional.cosine_similarity(_kernels(one), _kernels(other), dim=0))


def _kernels(network: nn.Module) -> Tensor:
    return torch.cat([weights.flatten() for weights in network.parameters() if weights.dim() > 1])


def _average(members: Sequence[Member], networks: Sequence[nn.Module]) -> tuple[Member, nn.Module]:
    if len(members) == 1:
        return members[0], networks[0]
    states = [network.state_dict() for network in networks]
    mean = copy.deepcopy(networks[0])
    mean.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})
    sha256 = hashlib.sha256("".join(member.sha256 for member in members).encode()).hexdigest()
    file = "mean of " + ", ".join(member.file for member in members)
    return members[0].model_copy(update={"file": file, "sha256": sha256, "fold": None}), mean


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first  # how many batches a norm has seen, which shapes no map
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(first.dtype)
