"""What holds for every test."""

from hypothesis import HealthCheck, settings

# No deadline: a busy machine is no defect.
settings.register_profile("tagfs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tagfs")
