# SPDX-License-Identifier: Apache-2.0
"""One program, two numpys: an array made by one is used by the other."""

import atoll


@atoll.function(dependencies=["numpy==1.26.4"], python=">=3.9,<3.13")
def make(rows: int):
    import numpy

    return {"by": numpy.__version__, "array": numpy.arange(rows * 3, dtype="float32").reshape(rows, 3)}


@atoll.function(dependencies=["numpy>=2"])
def total(array) -> dict:
    import numpy

    assert isinstance(array, numpy.ndarray)
    return {"by": numpy.__version__, "sum": float(array.sum()), "shape": array.shape}


if __name__ == "__main__":
    made = make(4)
    summed = total(made["array"])
    print(f"made with numpy {made['by']}, summed with numpy {summed['by']}: {summed['sum']} of {summed['shape']}")
