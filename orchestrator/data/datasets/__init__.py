"""Named data sets that `orchestrator data fetch` downloads or draws, and packs."""
