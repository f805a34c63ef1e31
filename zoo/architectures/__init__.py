"""What timm lacks or builds differently, made of timm's own blocks.

A function here is named like the architecture that `zoo/registration.py` registers in timm.
"""
