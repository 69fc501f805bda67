"""Controllers of the KL coefficient."""

import pytest

from stages.alignment.kl_controller import AdaptiveKLController, FixedKLController


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.1)
    controller.update(100.0, 512)
    assert controller.kl_coef == 0.1


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (600.0, 1.01), (0.0, 0.99), (6.6, 1.005), (5.4, 0.995)]
)
def test_an_adaptive_coefficient_steers_to_its_target(kl, factor):
    controller = AdaptiveKLController(0.2, target=6.0, horizon=10_000)
    controller.update(kl, 500)
    assert controller.kl_coef == pytest.approx(0.2 * factor, rel=1e-9)


def test_the_coefficient_outlives_a_restart():
    controller = AdaptiveKLController(0.2, target=6.0)
    controller.update(10.0, 512)
    again = AdaptiveKLController(0.2, target=6.0)
    again.load_state_dict(controller.state_dict())
    assert again.kl_coef == controller.kl_coef
