"""The ground floor: arrays, validation, results, the monitor and the registry. It knows no problem."""
