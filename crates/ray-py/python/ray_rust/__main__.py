"""`python -m ray_rust`: the command `ray-rust`."""

import sys

from ray_rust.scripts import main

sys.exit(main())
