"""LoRA and QLoRA fine-tuning on transformers.Trainer, with exact resume. Heavy imports stay inside functions."""

import logging

# bitsandbytes warns on every import, by whomever, of an optional CPU kernel for inference; nothing here needs it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
