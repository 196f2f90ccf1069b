"""Maps of gradient error and drift over the coefficients, and what they recommend.

`run` is `revsurgeon.errmap`. `grid` says which points, `subject` of which network, `sweep` measures one,
`workers` many, `results` keeps them, `recommend` finds the path, `plot` draws. The package is not called
errmap, because that is the name of the function, and a package and a function cannot both be
`revsurgeon.errmap`. Importing this does not import torch.
"""

from revsurgeon.errormap.error_map import ErrorMap

__all__ = ["ErrorMap"]
