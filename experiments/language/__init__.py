"""Sentiment of tweets: fine-tuned on one topic, tested on others."""
