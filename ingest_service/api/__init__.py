"""What producers send, and what they are answered."""
