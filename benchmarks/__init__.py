"""bertkit beside KerasHub and Hugging Face, on the same rows; not part of the package."""
