"""The client's end of the bus: ``client.Client``, what it says and hears (``work``, ``hearing``), one peer's socket
(``link``), and following the event log (``follow``).
"""
