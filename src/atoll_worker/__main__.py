# SPDX-License-Identifier: Apache-2.0
"""Entry of a worker process: ``python -I .../atoll_worker/__main__.py CONTROL LIFELINE SPIN DATA:LANE ...``, and of a
template that workers are forked from: ``... template CONTROL LIFELINE``.

Loads this package by its place on disk, because the folder around it may be the host's site-packages, which must
not be on a worker's ``sys.path``, not even for the length of one import. Kept small: it is compiled at every start.
"""

import gc
import sys

if __name__ == "__main__":
    # What is made from here until user code runs stays (`runtime.collect_from_here`): looking through it takes a
    # millisecond of a start.
    gc.disable()


def _load_package() -> None:
    if "atoll_worker" in sys.modules:
        return
    # What `importlib.util` re-exports, without the milliseconds of importing it.
    from _frozen_importlib import module_from_spec
    from _frozen_importlib_external import spec_from_file_location

    folder = __file__.rpartition("/")[0]
    spec = spec_from_file_location("atoll_worker", folder + "/__init__.py", submodule_search_locations=[folder])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["atoll_worker"] = module
    spec.loader.exec_module(module)


# Also when multiprocessing's "spawn" runs this file as `__mp_main__` in a child of a worker, which needs the package
# to import the service's module.
_load_package()

if __name__ == "__main__":
    from atoll_worker.runtime import main

    if sys.argv[1] != "template":
        main(sys.argv[1:])
    else:
        from atoll_worker import template

        argv = template.main(sys.argv[2:])  # returns in each worker that was forked
        if argv is not None:
            main(argv)
