"""`safekafka dlq`."""
