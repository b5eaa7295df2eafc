import torch
from torch import nn

from mood_infer.network import NetworkConfig, build_network, fold_norms, window_logits

WIDTHS = NetworkConfig(widths=(4, 4, 6, 6, 8))


def test_folded_norms_give_the_same_logits() -> None:
    torch.manual_seed(0)
    network = build_network(WIDTHS).eval().requires_grad_(False)
    windows = torch.rand(2, 1, 32, 32, 32)
    fresh = window_logits(network, windows)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as training leaves them: nothing is 0 or 1
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    expected = window_logits(network, windows)
    assert float((expected - fresh).abs().max()) > 0.1  # the statistics matter
    folded = fold_norms(network)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in folded.modules())
    torch.testing.assert_close(window_logits(folded, windows), expected, atol=1e-5, rtol=1e-5)


def test_window_logits_are_what_the_network_returns() -> None:
    torch.manual_seed(1)
    network = build_network(WIDTHS).eval().requires_grad_(False)
    windows = torch.rand(2, 1, 32, 32, 32)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        logits = window_logits(network, windows.to(memory_format=layout))
        torch.testing.assert_close(logits, network(windows), atol=1e-5, rtol=1e-5)
