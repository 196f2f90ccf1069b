"""Maps of gradient error and drift over the coefficients, and what they recommend.

`grid` says which points, `subject` of which network, `sweep` measures one, `workers` many, `results` keeps
them, `recommend` finds the path, `plot` draws. The package is not called errmap, because that is the name of
the function, and a package and a function cannot both be `revsurgeon.errmap`.
"""

from revsurgeon.errormap.error_map import ErrorMap
from revsurgeon.errormap.run import errmap

__all__ = ["ErrorMap", "errmap"]
