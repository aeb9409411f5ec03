"""The rig's settings: flags > ``RIGBUS_*`` > configuration files > defaults, and where each value came from."""
