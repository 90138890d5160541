"""Celery and the pipeline: importing, scraping, training, classifying. The only place that knows torch."""
