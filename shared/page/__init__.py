"""What every page of Consilia is drawn with: numbers in words, marks, charts, colours, policy."""
