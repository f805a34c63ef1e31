"""PP-LCNet at widths that timm does not name (Cui et al. 2021, https://arxiv.org/abs/2109.15099)."""

from functools import partial

from timm.models.mobilenetv3 import _gen_lcnet

CREATE = {
    name: partial(_gen_lcnet, name, width)
    for name, width in (("lcnet_025_ssld", 0.25), ("lcnet_250_ssld", 2.5))
}
