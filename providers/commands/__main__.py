"""``python -m nighttrain.providers.commands``."""

import sys

from nighttrain.providers.commands import main

sys.exit(main())
