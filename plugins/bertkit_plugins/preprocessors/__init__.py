"""How text becomes tensors."""
