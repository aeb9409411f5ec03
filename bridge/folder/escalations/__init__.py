"""Questions of the rig to people: records outwards as files and pages, answer files inwards."""
