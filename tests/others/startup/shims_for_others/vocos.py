"""gemelo-ai/vocos: packages that it imports, and that are not needed here."""

import sys
import types


def nothing(*args, **kwargs):
    return None


encodec, transformers = types.ModuleType("encodec"), types.ModuleType("transformers")
encodec.EncodecModel = object
transformers.get_cosine_schedule_with_warmup = nothing
for module in (encodec, transformers):
    sys.modules[module.__name__] = module
