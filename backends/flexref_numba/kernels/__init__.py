"""What numba compiles: functions of addresses in host memory, which know no array, no port and no thread."""
