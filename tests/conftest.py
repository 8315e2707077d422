"""What holds for every test."""

from hypothesis import settings

# A machine that does other work too makes an example slow and not wrong. (Hypothesis' own profile for CI says so too.)
if settings.default is not None and settings.default.deadline is not None:
    settings.register_profile("streamserve", deadline=None)
    settings.load_profile("streamserve")
