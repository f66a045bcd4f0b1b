"""The alternatives that the paper compares its layers with: attentions, position representations, cooling layers."""
