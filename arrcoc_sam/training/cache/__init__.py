"""The hierarchy cache: ``build`` computes every click's three masks once, ``dataset`` reads them in any training."""
