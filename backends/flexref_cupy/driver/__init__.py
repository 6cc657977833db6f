"""What CUDA itself offers: its calls, compiled programs, launches; nothing here knows an operator."""
