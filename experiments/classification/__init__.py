"""Fine-tuning under a domain shift: how much robustness does a method keep?"""
