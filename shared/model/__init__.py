"""The dual encoder: any CLIP-family checkpoint with LoRA; the only package that imports peft."""
