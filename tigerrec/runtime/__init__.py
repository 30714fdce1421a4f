"""The machine: devices, precision, seeds, processes, signals, memory."""
