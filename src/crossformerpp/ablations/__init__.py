"""What the paper compares its parts with: other attentions, position representations and cooling layers."""
