"""The paper's instruments: what the noise of an algorithm does, measured while it trains."""
