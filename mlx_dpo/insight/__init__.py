"""Looking at what DPO did."""
