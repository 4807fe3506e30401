"""The plugins that ship with bertkit, found through the same entry points as anyone's."""
